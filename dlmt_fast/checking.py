"""Compares a running transform with the reference while training goes on.

A share of the calls, chosen by a seed, is copied and compared bit by bit on one background thread, on the CPU. A
difference is raised at the next call, or when the check is closed; or it is logged. What was compared is counted, over
worker processes too.

What it may cost is bounded: at most `most_bytes` of images a call (at least one image), and at most four such pieces
waiting. Single small images are compared at once, which costs less than handing them to a thread. When the thread does
not keep up, a share skips calls and counts them; "all" waits, since it promises all.

No message holds key material beyond what one differing value tells: it names one pixel and what became of it, so keep
such messages with the owner of the key.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import math
import multiprocessing.context
import multiprocessing.util
import os
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import Any

from .difference import Piece, compare, copied, described, event_after, parts_of
from .direct import torch_looks_on
from .errors import CheckError, ParameterError
from .functional import observers
from .schemes.plan import Plan

MOST_BYTES = 1 << 20
_MOST_WAITING = 4  # pieces in line
_SMALL = 1 << 14  # values: fewer are compared by the caller (66 us for 3x32x32; handing them over costs it 310)
_MOST_LOGGED = 10  # differences written in full, a process
_TEXT_BYTES = 8192  # of the first difference, as other processes see it
_IDLE = 1.0  # seconds after which a thread without work ends
_FORK_WAIT, _EXIT_WAIT = 10.0, 60.0  # seconds, for what is in line

_log = logging.getLogger("dlmt_fast")
End = Callable[[Any, Any], None]


@dataclass(frozen=True)
class Report:
    """What was compared, over this process and those that it started.

    Attributes:
        calls: how often images were transformed.
        checked: how many of these calls were compared.
        skipped: chosen, but not compared, since four pieces were waiting already.
        images, values: how many were compared.
        differ: how many of the values differ.
    """

    calls: int = 0
    checked: int = 0
    skipped: int = 0
    images: int = 0
    values: int = 0
    differ: int = 0

    def __str__(self) -> str:
        skipped = f", {self.skipped} more were skipped to keep up" if self.skipped else ""
        done = f"checked {self.checked} of {self.calls} calls, {self.values} values compared, {self.differ} differ"
        return done + skipped


_CALLS, _CHECKED, _SKIPPED, _IMAGES, _VALUES, _DIFFER = range(6)


class Checker:
    """Looks on at `encrypt` and compares a share of its calls with the reference.

    Args:
        share: the share of calls to compare, 0 < share <= 1; or "all", for every image of every call.
        seed: chooses the calls and, in large batches, the images. Every process chooses differently, by its name
            (`multiprocessing.current_process().name`), so that short-lived workers do not all check the same calls;
            the same program chooses the same.
        on_difference: "raise" (a `CheckError`, at the next call or `close`) or "log" (the logger "dlmt_fast", ERROR).
        most_bytes: about how much of a batch is compared at once; of a larger one, a share takes every n-th image.

    Processes forked or spawned by `multiprocessing` count on their own, and `report` in the parent adds them up. What
    they find raises in them, at the latest is logged when they end, and `close` in the parent raises it too. Calls that
    torch traces (torch.compile, fake tensors) are seen where they run, by `checked` only.

    Raises:
        ParameterError: an argument means nothing.
    """

    def __init__(
        self,
        share: float | str = 0.01,
        seed: int = 0,
        on_difference: str = "raise",
        most_bytes: int = MOST_BYTES,
    ) -> None:
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share != "all" and not (number and 0 < float(share) <= 1):
            raise ParameterError(f'the share of calls to check must be over 0 and at most 1, or "all"; got {share!r}')
        if on_difference not in ("raise", "log"):
            raise ParameterError(f'on_difference must be "raise" or "log", got {on_difference!r}')
        for name, value, least in (("seed", seed, None), ("most_bytes", most_bytes, 1)):
            if type(value) is not int or (least is not None and value < least):
                raise ParameterError(f"{name} must be an integer{' of at least 1' if least else ''}, got {value!r}")
        self._set_up((share, seed, on_difference, most_bytes), _new_block(), RawArray(ctypes.c_char, _TEXT_BYTES), True)

    def _set_up(self, options: tuple[Any, ...], own: Any, text: Any, root: bool) -> None:
        self._options, self._text = options, text
        self.share, self.seed, self.on_difference, self.most_bytes = options
        self._reset(own, root)
        self._closed = False
        _alive.add(self)
        _open.add(self)

    def _reset(self, own: Any, root: bool) -> None:
        """What belongs to one process: made anew in a forked child."""
        self._own, self._root, self._next = own, root, own
        self._children: list[Any] = []
        self._changed = threading.Condition()
        self._waiting: deque[Piece] = deque()
        self._thread: threading.Thread | None = None
        self._stop = self._text_was_raised = False
        self._random: random.Random | None = None
        self._failure: CheckError | None = None
        self._logged = 0

    def begin(
        self,
        images: Any,
        plan: Plan,
        out: Any = None,
        layout: str = "NCHW",
        backend: str = "auto",
        threads: int | None = None,
    ) -> End | None:
        """Called before `encrypt(images, plan, out, layout, backend, threads)`.

        Returns:
            None where this call is not compared; else what to call with (result, bounds or None) after it.

        Raises:
            CheckError: an earlier call differed, once for each time that it was found.
        """
        if torch_looks_on(images):
            return None
        with self._changed:
            self._raise_failure()
            chosen, offset = self._choose()
        parts = parts_of(images, plan, layout, self.most_bytes, self.share == "all", offset) if chosen else []
        if not parts:
            return None
        before = None if out is None else [copied(images, part) for part in parts]  # out may be the images

        def end(result: Any, bounds: Any) -> None:
            call = described(images, plan, out is images, layout, backend, threads)
            for i, part in enumerate(parts):
                taken = before[i] if before is not None else copied(images, part)
                piece = Piece(call, part, taken, copied(result, part), None, None, i == len(parts) - 1)
                piece.bounds = None if bounds is None else copied(bounds, part)
                piece.ready = event_after(images)
                self._hand_over(piece)

        return end

    def report(self) -> Report:
        """What was compared so far, after waiting for what this process has in line."""
        self._settle(_EXIT_WAIT)
        return Report(*(int(sum(block[i] for block in (self._own, *self._children))) for i in range(6)))

    def close(self) -> Report:
        """Wait for what is in line, and log the report (INFO; WARNING where calls came but none was compared).

        Raises:
            CheckError: a value differed, here or in a process that this one started, and `on_difference` is "raise".
        """
        report = self._finish()
        with self._changed:
            self._raise_failure()
        text = self._found_elsewhere()
        if text:
            self._text_was_raised = True
            raise CheckError(text)
        return report

    def __repr__(self) -> str:
        return f"Checker(share={self.share!r}, seed={self.seed}, on_difference={self.on_difference!r})"

    # --- choosing, and handing over to the thread --------------------------------------------------------------------

    def _choose(self) -> tuple[bool, float]:
        """(whether this call is compared, where in a large batch to begin)."""
        if self._random is None:
            self._random = random.Random(f"{self.seed}/{multiprocessing.current_process().name}")
            _finish_with_this_process()
        if self._closed:
            self._closed = False
            _open.add(self)
        self._own[_CALLS] += 1
        if self.share == "all":
            return True, 0.0
        if self._random.random() >= self.share:
            return False, 0.0
        offset = self._random.random()
        if len(self._waiting) >= _MOST_WAITING:
            self._own[_SKIPPED] += 1
            return False, offset
        return True, offset

    def _hand_over(self, piece: Piece) -> None:
        if piece.ready is None and math.prod(piece.images.shape) <= _SMALL:
            self._compare(piece)
            return
        with self._changed:
            while len(self._waiting) >= _MOST_WAITING:
                self._changed.wait()
            self._waiting.append(piece)
            self._changed.notify_all()
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._work, name="dlmt-check", daemon=True)
            try:
                self._thread.start()
                return
            except RuntimeError:  # the interpreter shuts down, or the system gives no more threads
                self._thread = None
                self._waiting.remove(piece)
        self._compare(piece)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._stop:
                    self._changed.wait(_IDLE)
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                piece = self._waiting[0]
            self._compare(piece)
            del piece
            with self._changed:  # only now, so that an empty line means that all is done
                self._waiting.popleft()
                self._changed.notify_all()

    def _compare(self, piece: Piece) -> None:
        failure: CheckError | None = None
        values = differ = 0
        try:
            values, differ, difference = compare(piece)
            if difference is not None:
                failure = CheckError(str(difference), difference)
        except Exception as error:  # noqa: BLE001 - a check that fails must not look like one that passed
            failure = CheckError(f"a call could not be checked: {type(error).__name__}: {error}")
            failure.__cause__ = error
        with self._changed:
            if values:
                self._own[_CHECKED] += piece.last
                self._own[_IMAGES] += len(piece.images) if piece.part is not None else 1
                self._own[_VALUES] += values
                self._own[_DIFFER] += differ
            if failure is not None:
                self._note(failure)

    def _note(self, failure: CheckError) -> None:
        if not self._text.value:
            self._text.value = str(failure).encode()[: _TEXT_BYTES - 1]
        if self.on_difference == "raise":
            self._failure = self._failure or failure
            return
        if self._logged < _MOST_LOGGED:
            _log.error("%s", failure)
        self._logged += 1

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            self._text_was_raised = True
            raise failure

    def _found_elsewhere(self) -> str:
        """The first difference that another process found, where it must still be raised here."""
        raised = self.on_difference != "raise" or self._text_was_raised or not self._root
        return "" if raised else bytes(self._text.value).decode(errors="replace")

    # --- the end, and other processes --------------------------------------------------------------------------------

    def _settle(self, seconds: float, stop: bool = False) -> bool:
        """Whether nothing is in line any more; with `stop`, the thread has ended as well."""
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            self._stop = stop
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting and not (stop and self._thread), seconds)
            finally:
                self._stop = False

    def _finish(self) -> Report:
        if not self._settle(_EXIT_WAIT, stop=True):
            _log.warning("%r: gave up waiting for %d pieces", self, len(self._waiting))
        report = self.report()
        self._closed = True
        _open.discard(self)
        if self._root:
            empty = report.calls and not report.checked
            _log.log(logging.WARNING if empty or report.differ else logging.INFO, "dlmt_fast.checking: %s", report)
        return report

    def _end_with_process(self) -> None:
        """Nothing can be raised any more: log what was not."""
        self._finish()
        failure = str(self._failure or self._found_elsewhere())
        if failure:
            _log.error("%s", failure)
        if not self._root:
            for block in self._children:  # what they counted goes up with this process
                for i in range(6):
                    self._own[i] += block[i]
            self._children = []

    def _before_fork(self) -> None:
        self._settle(_FORK_WAIT, stop=True)  # else a lock could be held in the child for ever
        self._next = _new_block()

    def _after_fork(self, child: bool) -> None:
        if child:
            self._reset(self._next, root=False)
        else:
            self._children.append(self._next)

    def __getstate__(self) -> dict[str, Any]:
        """A process that is being spawned gets counters of its own, which this one reads; other pickles start at 0."""
        shared = None
        if multiprocessing.context.get_spawning_popen() is not None:
            self._children.append(_new_block())
            shared = (self._children[-1], self._text)
        return {"options": self._options, "shared": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own, text = state["shared"] or (_new_block(), RawArray(ctypes.c_char, _TEXT_BYTES))
        self._set_up(state["options"], own, text, root=state["shared"] is None)


@contextmanager
def checked(
    share: float | str = 0.01, seed: int = 0, on_difference: str = "raise", most_bytes: int = MOST_BYTES
) -> Iterator[Checker]:
    """Compare a share of all `encrypt` calls inside the block; see `Checker` for the arguments.

    The calls of all threads count, those of processes forked inside the block too, and what torch.compile made of
    them. Workers that are spawned do not know of the block; use `transforms.Encrypt(..., check=...)` there.

    Raises:
        CheckError: a value differed, at a later call or at the end of the block. Where the block ends with another
            exception, that one goes on, and the difference is logged.
        ParameterError: an argument means nothing.
    """
    checker = Checker(share, seed, on_difference, most_bytes)
    observers.append(checker.begin)
    try:
        yield checker
    except BaseException:
        observers.remove(checker.begin)
        checker._end_with_process()
        raise
    observers.remove(checker.begin)
    checker.close()


# --- processes -------------------------------------------------------------------------------------------------------

_alive: weakref.WeakSet[Checker] = weakref.WeakSet()
_open: set[Checker] = set()  # until they are closed or the process ends, so that what they found is always told
_finishing = 0  # the process that will call `_finish_all`


def _new_block() -> Any:
    """Counters that one process writes and its parent reads."""
    return RawArray(ctypes.c_int64, 6)


def _finish_all() -> None:
    for checker in list(_open):
        checker._end_with_process()


def _finish_with_this_process() -> None:
    """Once a process: `atexit` does not run in most multiprocessing children, nor their finalizers elsewhere."""
    global _finishing
    if _finishing == os.getpid():
        return
    if _finishing == 0:
        atexit.register(_finish_all)
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _finish_all, exitpriority=100)
    _finishing = os.getpid()


def _before_fork() -> None:
    for checker in list(_alive):
        checker._before_fork()


def _after_fork(child: bool) -> None:
    for checker in list(_alive):
        checker._after_fork(child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(False),
        after_in_child=lambda: _after_fork(True),
    )
