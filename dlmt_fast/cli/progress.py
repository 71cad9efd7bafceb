"""What a running command shows on stderr: a live line on a terminal, else a line of text every ten seconds.

Without a terminal short commands stay silent, as their summary says it all, and so does `--json`, whose callers often
read both streams together; `--progress plain` asks for the lines all the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console

from ..errors import ParameterError
from .shared import console

if TYPE_CHECKING:  # at run time it would load all that a job needs, for --help too
    from ..pipeline.summary import Progress, Standing

MODES = ("auto", "plain", "none")
_EVERY = 10.0  # seconds between two lines
_WINDOW = 30.0  # seconds that speeds are taken over
_STEP = 0.5  # seconds between two samples of the window


class Meter:
    """Speeds over the last half minute, and the time that is left.

    Args:
        title: the command.
        workers: as the command was told; 0: it has none.
        clock: seconds.
    """

    def __init__(self, title: str, workers: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._workers, self._clock = title, workers, clock
        self._seen: deque[tuple[float, Standing]] = deque()
        self._standing: Standing | None = None

    def update(self, standing: Standing) -> None:
        """Take in where the command stands. What has no bytes was done by an earlier run and has no speed."""
        now = self._clock()
        self._standing = standing
        if not (standing.bytes or standing.quarantined):
            self._seen.clear()
        if not self._seen or now - self._seen[-1][0] >= _STEP:
            self._seen.append((now, standing))
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 1:
            self._seen.popleft()

    def rates(self) -> tuple[float, float]:
        """(samples a second, bytes a second); 0.0 while nothing can be said."""
        if self._standing is None:
            return 0.0, 0.0
        then, first = self._seen[0]
        seconds = max(self._clock() - then, 1e-3)
        return (
            max(0.0, (self._standing.done - first.done) / seconds),
            max(0.0, (self._standing.bytes - first.bytes) / seconds),
        )

    def numbers(self) -> str:
        """Such as `1200 of 5000 images, 340 images/s, 51.2 MB/s, 0:00:11 left, 2 workers, 1 quarantined`."""
        if self._standing is None:
            return "looking at what is there"
        standing, (samples, size) = self._standing, self.rates()
        done = f"{standing.done} of {standing.total} images" + (f" {standing.doing}" if standing.doing else "")
        parts = [done, f"{samples:.0f} images/s", f"{size / 1e6:.1f} MB/s"]
        if samples:
            parts.append(f"{timedelta(seconds=round((standing.total - standing.done) / samples))} left")
        if self._workers:
            parts.append(f"{self._workers} workers" if self._workers > 1 else "1 worker")
        if standing.quarantined:
            parts.append(f"{standing.quarantined} quarantined")
        return ", ".join(parts)


@contextmanager
def shown(title: str, mode: str, as_json: bool, workers: int = 0) -> Iterator[Progress]:
    """Show a command over a store while the block runs.

    Raises:
        ParameterError: an unknown mode.
    """
    if mode not in MODES:
        raise ParameterError(f"--progress must be one of {', '.join(MODES)}, got {mode!r}")
    stderr, meter = console(), Meter(title, workers)
    live = stderr.is_terminal and not stderr.is_dumb_terminal
    if mode == "auto" and live:
        with _live(title, meter, stderr) as progress:
            yield progress
    elif mode == "none" or (mode == "auto" and as_json):
        yield meter.update
    else:
        yield _lines(title, meter, stderr)


def _lines(title: str, meter: Meter, stderr: Console, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A line every ten seconds."""
    last = clock()

    def progress(standing: Standing) -> None:
        nonlocal last
        meter.update(standing)
        if clock() - last >= _EVERY:
            last = clock()
            stderr.print(f"{title}: {meter.numbers()}", highlight=False, markup=False)

    return progress


@contextmanager
def _live(title: str, meter: Meter, stderr: Console) -> Iterator[Progress]:
    """One line that changes, gone at the end."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.text import Text

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(meter.numbers(), no_wrap=True, overflow="ellipsis")

    with Progress(title, BarColumn(20), Numbers(), console=stderr, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def progress(standing: Standing) -> None:
            meter.update(standing)
            bar.update(task, completed=standing.done, total=standing.total)

        yield progress


@contextmanager
def step_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of steps on stderr where that is a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stderr = console()
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
