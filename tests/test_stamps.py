"""What a job keeps on disk instead of in memory: the listing of a source, and sets of names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dlmt_fast.errors import StoreError
from dlmt_fast.stores import digests, scratch, stamps
from dlmt_fast.stores.contract import FileStamp
from dlmt_fast.stores.digests import DigestSet, Spool, digest64, repeated
from dlmt_fast.stores.folder import FolderSource
from dlmt_fast.stores.stamps import Stamps
from dlmt_fast.stores.walk import LinkedFolders, folders_below, is_empty


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, blocks and merges of a few records, so that some hundred need every step."""
    for name, size in (("_RUN", 8), ("_BLOCK", 3), ("_MERGED_AT_ONCE", 4), ("_READ", 5)):
        monkeypatch.setattr(stamps, name, size)
    monkeypatch.setattr(digests, "_RUN", 64)
    monkeypatch.setattr(digests, "_BLOCK", 4)


def shuffled(count: int) -> list[FileStamp]:
    """Stamps whose order differs as text, as bytes, and by folders first."""
    names = ["a/b", "a.b", "a b", "a\nb", 'a"b', "a\\b", "ä", "\U0001f600", "\uffee", "A", "a/\x01"]
    states = [f'"{i} = a tag"' if i % 5 == 4 else -i if i % 3 else i << 40 for i in range(count)]
    stamps = [FileStamp(f"{names[i % 11]}{i}", i, states[i]) for i in range(count)]
    return [stamps[i] for i in np.random.default_rng(count).permutation(count)]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 32, 33, 128, 129, 300])
def test_a_listing_is_sorted_by_bytes_and_read_at_any_place(count: int, small: None) -> None:
    files = shuffled(count)
    want = sorted(files, key=lambda stamp: stamp.path.encode())
    found = Stamps(files)
    assert len(found) == count
    assert list(found) == want
    assert list(found) == want, "a second time"
    assert [found[i] for i in range(count)] == want
    for start in range(0, count, 7):
        assert found.part(range(start, min(start + 11, count))) == want[start : start + 11]
    assert found.part(range(count, count)) == []


def test_places_beyond_a_listing() -> None:
    found = Stamps(shuffled(3))
    for indices in (range(-1, 1), range(2, 4), range(4, 4), range(0, 3, 2)):
        with pytest.raises(IndexError):
            found.part(indices)
    assert not list(Stamps([]))


def test_a_listing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    found = Stamps(shuffled(100))
    assert is_empty(tmp_path)
    assert len(list(found)) == 100


def test_the_order_is_that_of_whole_paths(tmp_path: Path) -> None:
    names = ["a/b.png", "a.png", "a b.png", "a-/c.png", "a0/c.png", "a/b/c.png", "a/b-c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [stamp.path for stamp in FolderSource(tmp_path).stamps()] == sorted(names, key=str.encode)


# digests


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_names_that_occur_twice_are_found(count: int, small: None) -> None:
    names = [f"name {i}" for i in range(count)]
    twice = names[::3]
    found = repeated([*names, *twice, *twice[::2]])
    assert bool(found) is bool(twice)
    assert [name for name in names if digest64(name) in found] == twice
    assert not repeated(names)


def test_a_spool_gives_all_digests_in_order_of_parts(small: None) -> None:
    edges = [0, 1, (1 << 64) - 1, 1 << 63, (1 << 58) - 1, 1 << 58]
    values = [*map(int, np.random.default_rng(0).integers(0, 1 << 64, 500, np.uint64)), *edges, *edges]
    parts = list(Spool(iter(values)).parts())
    assert np.concatenate([np.sort(part) for part in parts]).tolist() == sorted(values)
    assert len(parts) == 64
    assert all(value >> 58 == place for place, part in enumerate(parts) for value in part.tolist())


def test_every_member_of_a_large_set_is_found(small: None) -> None:
    values = np.unique(np.random.default_rng(0).integers(0, 1 << 64, 1000, np.uint64))
    found = DigestSet(np.array_split(values, 13))
    assert all(int(value) in found for value in values)
    assert not any(int(value) + step in found for value in values[:-1] for step in (1, -1))
    assert 0 not in found
    assert (1 << 64) - 1 not in found


# walking


def test_folders_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").write_bytes(b"")
    assert sorted(folders_below(tmp_path)) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert is_empty(tmp_path / "a" / "b")
    assert not is_empty(tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`root` to be walked, and `other` outside of it; both have a hidden and a plain folder."""
    for top in ("root", "other"):
        (tmp_path / top / "in" / "deep").mkdir(parents=True)
        (tmp_path / top / ".hidden" / "deep").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("links", "refused"),
    [
        (["root"], True),
        (["root/in/deep"], True),
        (["."], True),  # from above, the walk would come to the root again
        (["root/.hidden"], False),  # which the walk leaves out
        (["root/.hidden/deep"], False),
        (["root/.hidden", "root/.hidden/deep"], True),
        (["root/.hidden/deep", "root/.hidden"], True),
        (["other", "other"], True),
        (["other", "other/in"], True),
        (["other/in/deep", "other"], True),
        (["other", "other/.hidden"], False),
        (["other/.hidden/deep", "other"], False),
        (["other/in", "other/.hidden"], False),
    ],
)
def test_folders_that_links_reach_twice(links: list[str], refused: bool, tree: Path) -> None:
    found = LinkedFolders(tree / "root")
    for place, to in enumerate(links):
        link = tree / f"link{place}"
        link.symlink_to(tree / to)
        if refused and place == len(links) - 1:
            with pytest.raises(StoreError, match=f"link{place} is read already"):
                found.follow(os.fspath(link))
        else:
            found.follow(os.fspath(link))
