"""Paths and URLs of stores, and the words for what goes wrong there."""

from __future__ import annotations

import errno
import pickle
import sys
from pathlib import Path

import pytest

from dlmt_fast.errors import BackendError, DlmtError, RemoteError, StoreError, UsageError
from dlmt_fast.stores.location import is_remote, located
from dlmt_fast.stores.remote_errors import remote_errors

upath = pytest.importorskip("upath")


@pytest.mark.parametrize("text", ["photos", "/data/photos", "../a b", "odd:name/x", "C:/photos", "a::b", "x#y?z"])
def test_a_local_path_stays_one(text: str) -> None:
    assert located(text) == Path(text)
    assert located(Path(text)) == Path(text)
    assert not is_remote(located(text))


def test_a_file_url_is_a_local_path() -> None:
    assert located("file:///data/a%20b") == Path("/data/a b")
    assert located("file://localhost/data") == Path("/data")
    with pytest.raises(UsageError, match="other"):
        located("file://other/data")


def test_a_protocol_has_no_case() -> None:
    assert located("S3://Bucket/Photos") == located("s3://Bucket/Photos")


@pytest.mark.parametrize("text", ["s3://bucket/photos", "memory://photos", "memory://a/b c"])
def test_a_url_has_the_methods_of_a_path(text: str) -> None:
    place = located(text + "/")
    assert is_remote(place)
    assert str(place) == text
    assert str(place / "cats/1.png") == f"{text}/cats/1.png"
    assert (place / "cats" / "1.png").suffix == ".png"
    assert str(located(place)) == text


def test_a_pickle_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-id-of-the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-itself")
    place = located("s3://bucket/photos")
    assert place.fs is not None  # type: ignore[attr-defined]
    data = pickle.dumps(place)
    assert b"the-secret-itself" not in data
    assert b"the-id-of-the-key" not in data
    assert pickle.loads(data) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonesuch://bucket/x", "no protocol nonesuch://"),
        ("s3://id:hidden@bucket/x", "holds a password"),
        ("sftp://me:hidden@host/x", "holds a password"),
        ("https://host/x.tar?X-Amz-Signature=hidden", "query"),
        ("simplecache::s3://bucket/x", "chain"),
        ("s3:/bucket/x", "lost a slash"),
        ("s3://", "names no bucket"),
    ],
)
def test_what_is_no_place_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        located(text)
    assert "hidden" not in str(caught.value)


def test_a_url_of_pathlib_is_refused() -> None:
    with pytest.raises(UsageError, match="lost a slash"):
        located(Path("s3://bucket/x"))


def test_a_upath_with_a_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="secret") as caught:
        located(upath.UPath("s3://bucket/x", key="id", secret="hidden"))
    assert "hidden" not in str(caught.value)
    assert is_remote(located(upath.UPath("s3://bucket/x", anon=True)))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(BackendError, match=r'pip install "dlmt-fast\[s3\]"'):
        located("s3://bucket/x")


def test_a_missing_library_of_a_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def absent(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3" if protocol == "s3" else "Please install oddfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(BackendError, match=r"s3fs.*dlmt-fast\[s3\]"):
        located("s3://bucket/x")
    with pytest.raises(BackendError, match="oddfs"):
        located("gs://bucket/x")


# --- errors ----------------------------------------------------------------------------------------------------------


class NoCredentialsError(Exception):
    pass


class ClientResponseError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("said by the server")
        self.status = status


def told(error: Exception, place: Path | None = None) -> Exception:
    with pytest.raises(Exception) as caught, remote_errors(place or located("s3://bucket/x.png")):
        raise error
    assert caught.value.__cause__ is None
    return caught.value


def test_missing_credentials_say_where_they_are_looked_for() -> None:
    error = told(NoCredentialsError("Unable to locate credentials"))
    assert isinstance(error, StoreError)
    assert "AWS_ACCESS_KEY_ID" in str(error)
    assert "s3://bucket/x.png" in str(error)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PermissionError("Forbidden"), errno.EACCES),
        (ClientResponseError(403), errno.EACCES),
        (ClientResponseError(503), errno.EIO),
        (ClientResponseError(400), errno.EINVAL),
        (TimeoutError(), errno.ETIMEDOUT),
        (OSError(errno.EBUSY, "Please reduce your request rate"), errno.EBUSY),
        (OSError("without a number"), errno.EIO),
    ],
)
def test_failures_of_a_server_are_os_errors(error: Exception, number: int) -> None:
    remote = told(error)
    assert isinstance(remote, RemoteError)
    assert remote.errno == number
    assert "s3://bucket/x.png" in str(remote)
    assert str(pickle.loads(pickle.dumps(remote))) == str(remote)


def test_what_is_not_there_is_told_as_on_a_disk() -> None:
    missing = told(FileNotFoundError("bucket/x.png"))
    assert isinstance(missing, FileNotFoundError)
    assert not isinstance(missing, DlmtError)
    assert missing.errno == errno.ENOENT
    assert "no such bucket" in str(told(FileNotFoundError("The specified bucket does not exist")))


def test_the_user_of_an_endpoint_is_left_out() -> None:
    error = told(OSError("Could not connect to http://me:hidden@127.0.0.1:9/x"))
    assert "hidden" not in str(error)


def test_other_errors_and_local_ones_pass() -> None:
    with pytest.raises(ZeroDivisionError), remote_errors(located("s3://bucket/x")):
        raise ZeroDivisionError
    local = PermissionError(errno.EACCES, "no")
    with pytest.raises(PermissionError) as caught, remote_errors(Path("x")):
        raise local
    assert caught.value is local
