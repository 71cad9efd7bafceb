"""Ctrl-C and SIGTERM end a run between two steps, when the state is whole and can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ..errors import DlmtError


class TrainingStopped(DlmtError):
    """A run was stopped before its end. The message says where its checkpoint is and how to go on."""


class StopRequest:
    """While the block runs, the first SIGINT or SIGTERM sets `asked`; a second SIGINT interrupts at once.

    Outside the main thread, where Python allows no handlers, signals do what they did before.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
