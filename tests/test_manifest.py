"""The public manifest: what it holds, how it is checked, and how it is found."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlmt_fast.errors import StoreDamagedError, StoreError
from dlmt_fast.stores.contract import Published
from dlmt_fast.stores.manifest import DTYPES, MAX_BYTES, Manifest, decode_manifest, manifest_path, read_manifest

SHARD = Published("dlmt-shard-00000.txt", 2, 300, "a" * 64)
GOOD = Manifest("folder", "0123456789abcdef" * 2, "uint8", (3, 4, 5), 2, (SHARD,), (), b"sealed")
PATH = Path("there/dlmt-store.json")


def document(**changes: Any) -> dict[str, Any]:
    """A manifest's JSON with some fields changed and the checksum right again."""
    found: dict[str, Any] = json.loads(GOOD.encode()) | changes
    del found["sha256"]
    text = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return found | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def decode(found: Any) -> Manifest:
    return decode_manifest(json.dumps(found, indent=1).encode() + b"\n", PATH)


@pytest.mark.parametrize(
    "manifest",
    [
        GOOD,
        dataclasses.replace(GOOD, shape=None, count=0, shards=()),
        dataclasses.replace(GOOD, kind="idx", extras=(Published("labels.gz", 1, 9, "b" * 64),), sealed=bytes(5000)),
        *(dataclasses.replace(GOOD, dtype=dtype) for dtype in DTYPES),
    ],
)
def test_round_trip(manifest: Manifest) -> None:
    assert decode_manifest(manifest.encode(), PATH) == manifest
    assert manifest.encode() == manifest.encode()


def test_the_fields_are_those_of_the_contract() -> None:
    found = json.loads(GOOD.encode())
    assert set(found) == {
        *("format", "version", "kind", "store_id", "dtype", "shape", "count", "shards", "extras", "sealed", "sha256")
    }
    assert (found["format"], found["version"]) == ("dlmt-store", 1)
    assert base64.b64decode(found["sealed"]) == b"sealed"
    assert found == document()
    assert decode(found) == GOOD


def shard(**changes: Any) -> list[dict[str, Any]]:
    return [dataclasses.asdict(SHARD) | changes]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "hdf5"},
        {"kind": ["folder"]},
        {"store_id": "0" * 31},
        {"store_id": "G" * 32},
        {"store_id": "0" * 32 + "\n"},
        {"store_id": 7},
        {"dtype": "float64"},
        {"dtype": "nonsense"},
        {"dtype": "object"},
        {"dtype": None},
        {"dtype": ["uint8"]},
        {"shape": [3, 4]},
        {"shape": [3, 0, 5]},
        {"shape": [3, -4, 5]},
        {"shape": "345"},
        {"shape": [True, 4, 5]},
        {"shape": [3, 4, 1 << 62]},
        {"count": -1},
        {"count": "2"},
        {"count": True},
        {"count": 1 << 62},
        {"shards": {}},
        {"shards": [7]},
        {"shards": shard(more=1)},
        {"shards": shard(count=-1)},
        {"shards": shard(size="9")},
        {"shards": shard(sha256="A" * 64)},
        {"shards": shard(sha256="a" * 63)},
        *({"shards": shard(name=name)} for name in ("", "../x", "/x", "a/b", "a\\b", "a\0b", ".x", "..", 7, None)),
        *({"extras": shard(name=name)} for name in ("", "../x", "/x", "a/b", "a\\b", ".x")),
        {"extras": None},
        {"sealed": "not base64!"},
        {"sealed": 7},
        {"more": 1},
        {"count": 2.0},
        {"count": 2.5},
        {"dtype": "\ud800"},
    ],
    ids=str,
)
def test_other_manifests_are_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(StoreDamagedError, match=r"dlmt-store\.json is damaged"):
        decode(document(**changes) if changes != {"dtype": "\ud800"} else json.loads(GOOD.encode()) | changes)


def test_only_where_files_lie_in_folders_a_name_has_slashes() -> None:
    entry = vars(SHARD) | {"name": "images/c.0"}
    assert decode(document(kind="zarr", shards=[entry])).shards[0].name == "images/c.0"
    for name in ("images//c", "images/../c", "images/.c", "/c", "images/", "images/a\\b", "images/\0"):
        with pytest.raises(StoreDamagedError, match="leaves the store"):
            decode(document(kind="zarr", shards=[entry | {"name": name}]))


@pytest.mark.parametrize("field", sorted(json.loads(GOOD.encode())))
def test_every_field_is_needed_and_bound_by_the_checksum(field: str) -> None:
    found = document()
    for changed in ({k: v for k, v in found.items() if k != field}, found | {field: "0" * 64}):
        with pytest.raises(StoreError) as caught:
            decode(changed)
        assert isinstance(caught.value, StoreDamagedError) or field == "version"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"{}",
        b'"dlmt-store"',
        b"NaN",
        b"[" * 100_000,
        b"1" * 10_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda data: str(data[:12]),
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(StoreDamagedError, match="damaged or not a manifest"):
        decode_manifest(data, PATH)


@pytest.mark.parametrize("depth", [500, 900, 950, 980, 990, 1000, 3000])
def test_deep_nesting_is_damage(depth: int) -> None:
    data = GOOD.encode().replace(b'"extras": []', b'"extras": ' + b"[" * depth + b"]" * depth)
    with pytest.raises(StoreDamagedError):
        decode_manifest(data, PATH)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b" ", lambda d: d.replace(b"\n ", b"\n  ", 1)])
def test_even_white_space_is_bound(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StoreDamagedError, match="not those that were written"):
        decode_manifest(change(GOOD.encode()), PATH)


def test_a_field_twice_is_damage() -> None:
    with pytest.raises(StoreDamagedError, match="twice"):
        decode_manifest(GOOD.encode().replace(b'"count": 2,', b'"count": 2, "count": 2,', 1), PATH)


def test_a_huge_file_is_refused_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmt_fast.stores.manifest.MAX_BYTES", 100)
    with pytest.raises(StoreDamagedError, match="too large"):
        decode_manifest(GOOD.encode(), PATH)
    assert MAX_BYTES >= 1 << 20


def test_a_newer_version_says_upgrade() -> None:
    with pytest.raises(StoreError, match="upgrade") as caught:
        decode(document(version=2))
    assert not isinstance(caught.value, StoreDamagedError)


def test_where_it_lies(tmp_path: Path) -> None:
    single = tmp_path / "x-idx3-ubyte"
    single.touch()
    assert manifest_path(tmp_path) == tmp_path / "dlmt-store.json"
    assert manifest_path(single) == tmp_path / "x-idx3-ubyte.dlmt-store.json"
    with pytest.raises(StoreError, match="does not exist"):
        read_manifest(tmp_path / "none")
    unfinished: list[Callable[[], Manifest]] = [lambda: read_manifest(tmp_path), lambda: read_manifest(single)]
    for read in unfinished:
        with pytest.raises(StoreError, match="unfinished, or not a store"):
            read()
    manifest_path(tmp_path).write_bytes(GOOD.encode())
    assert read_manifest(tmp_path) == GOOD
