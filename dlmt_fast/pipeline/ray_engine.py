"""Shards as Ray tasks: one task a shard, on one machine or a cluster.

The tasks publish shards in the target, which every machine must reach under the same path. What belongs to the owner
(ledger, sealed by the task; quarantine list; journal entry) comes back with a task's result, and the driver enters it:
the owner's folder stays beside the key file, on the driver's machine alone.

The key is put into Ray's object store once, in an object that shows nothing of itself, and tasks are given a reference
to it: no argument, name, log line or environment holds it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from ..errors import DlmtError, StoreError, missing
from ..keys import allow_export
from ..stores.attempts import retried
from .owner import OwnerFolder
from .summary import Advance
from .task import JobContext, Made, ShardResult, Task
from .worker import Entries, ShardWork, clear_shard

_DEATHS = 3  # of workers over one shard, then the job fails
_LEAST_AHEAD = 16  # tasks in flight, however small a cluster is now: one that grows by demand sees what is asked for
_PATIENCE = 30.0  # seconds for tasks to end that were cancelled


@dataclass(frozen=True, repr=False)
class _Shared:
    """What all tasks of a job share, the key among it."""

    token: str
    job: JobContext


def check_ray() -> None:
    """See that Ray is installed.

    Raises:
        BackendError: it is not; the message says what to install.
    """
    _ray()


def run_on_ray(
    job: JobContext, owner: OwnerFolder, tasks: Iterator[Task], address: str | None, most: int | None, advance: Advance
) -> Generator[tuple[Task, ShardResult], None, None]:
    """Do the tasks on a Ray cluster. A worker that is killed has its shard done again by Ray, some times.

    Args:
        address: of the cluster; None: that of RAY_ADDRESS, or a new one on this machine for as long as the job lasts.
        most: tasks in flight; None: twice the cluster's CPUs, and no fewer than some.

    Raises:
        StoreError: there is no cluster at that address, or a shard ended several workers. What a task raised is raised
            here.
    """
    ray, entries = _ray(), Entries(owner)
    with _connected(ray, address):
        most = most or max(_LEAST_AHEAD, 2 * int(ray.cluster_resources().get("CPU", 1)))
        with allow_export():
            shared = ray.put(_Shared(secrets.token_hex(8), job))
        remote = ray.remote(num_cpus=1, max_retries=_DEATHS - 1, retry_exceptions=False)(do_shard)
        flying: dict[Any, Task] = {}
        try:
            while True:
                for task in islice(tasks, most - len(flying)):
                    task = replace(task, entered=entries.result(task.shard.index))
                    flying[remote.options(name=f"dlmt-shard-{task.shard.index}").remote(shared, task)] = task
                if not flying:
                    return
                for done in ray.wait(list(flying), num_returns=1)[0]:
                    made = _result(ray, done, flying[done])
                    task = flying.pop(done)
                    retried(partial(entries.enter, task, made))
                    advance(len(task.shard.samples), made.published.size, sum(not item.equal for item in made.refused))
                    yield task, made.result
        finally:
            _cancel(ray, list(flying))


def do_shard(shared: _Shared, task: Task) -> Made | Exception:
    """The task: in a worker process of Ray, which may have died over this shard before."""
    try:
        work = _work_of(shared)  # refuses other versions before it touches anything
        clear_shard(shared.job, task)
        return work.make(task, lambda samples, size=0, refused=0: None)
    except (DlmtError, OSError) as error:
        return error


_WORK: dict[str, ShardWork] = {}


def _work_of(shared: _Shared) -> ShardWork:
    """One a job in each worker process, so that plans are made once."""
    if shared.token not in _WORK:
        _WORK.clear()
        _WORK[shared.token] = ShardWork(shared.job, None)
    return _WORK[shared.token]


def _result(ray: Any, done: Any, task: Task) -> Made:
    try:
        made = ray.get(done)
    except ray.exceptions.RayTaskError:  # a mistake of this package
        raise
    except ray.exceptions.RayError as error:
        raise StoreError(
            f"shard {task.shard.index} ended {_DEATHS} workers of Ray, or the machines that they ran on "
            f"({type(error).__name__}); too little memory is the usual cause: a smaller --shard-size needs less"
        ) from None
    if isinstance(made, Exception):
        raise made
    found: Made = made
    return found


def _cancel(ray: Any, flying: list[Any]) -> None:
    """End what is under way, so that nothing writes after this."""
    for task in flying:
        ray.cancel(task, force=True)
    if flying:
        ray.wait(flying, num_returns=len(flying), timeout=_PATIENCE)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to the cluster: the caller's own where there is one, else one that ends with the block."""
    if ray.is_initialized():
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    # Workers' output would come between a command's own; no dashboard is opened for the time of a job.
    options = {"include_dashboard": False} if (address or os.environ.get("RAY_ADDRESS")) is None else {}
    try:
        ray.init(address, log_to_driver=False, logging_level="warning", **options)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise StoreError(f"no Ray cluster answers at {address or 'RAY_ADDRESS'}: {error}") from None
    try:
        if main:
            signal.signal(signal.SIGTERM, before)  # ray.init has put its own there
        with redirect_stdout(sys.stderr):  # Ray prints news of the cluster, and standard output is for results
            yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing("ray", "--engine ray", "ray") from error
    return ray
