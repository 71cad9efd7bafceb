"""Threads that a process keeps: in order, a bounded number ahead, nothing left at work, none inherited by a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from dlmt_fast.pipeline.arenas import few_arenas
from dlmt_fast.stores.batching import in_threads
from dlmt_fast.stores.threads import kept_threads


def test_results_come_in_order_and_few_are_taken_ahead() -> None:
    taken, given = [], 0

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return -item

    def items() -> object:
        for item in range(50):
            taken.append(item)
            assert len(taken) - given <= 5 + 1  # one more, as its result is handed out
            yield item

    for expected, result in enumerate(in_threads(work, items(), 3, 5)):  # type: ignore[arg-type]
        assert result == -expected
        given += 1
    assert given == 50


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_works_on_after_the_end(fails: bool) -> None:
    working, lock = 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal working
        with lock:
            working += 1
        time.sleep(0.005)
        with lock:
            working -= 1
        if fails and item == 3:
            raise OSError("the disk is gone")
        return item

    results = in_threads(work, range(100), 4, 8)
    if fails:
        with pytest.raises(OSError, match="the disk is gone"):
            list(results)
    else:
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert working == 0


def test_they_are_kept() -> None:
    assert kept_threads("test", 2) is kept_threads("test", 2)
    assert kept_threads("test", 2) is not kept_threads("test", 3)
    assert kept_threads("test", 2) is not kept_threads("other", 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_its_own() -> None:
    program = """if True:
        import os
        from dlmt_fast.stores.threads import kept_threads
        assert kept_threads("test", 2).submit(int, 1).result() == 1
        child = os.fork()
        if not child:
            os._exit(kept_threads("test", 2).submit(int, 7).result(timeout=20))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-P", "-c", program]  # of forks with threads
    assert subprocess.run(command, timeout=60).returncode == 0


def test_a_limit_for_malloc_is_taken_everywhere() -> None:
    few_arenas()
