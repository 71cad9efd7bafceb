"""Reading and writing that is tried again where a device or a network fails for a moment."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_ATTEMPTS = 3
_PAUSE = 0.2  # seconds before the second attempt, four times as long before each further one
# Errors of devices and networks that may pass. A full disk or a missing permission does not.
_PASSING = {
    *(errno.EIO, errno.ETIMEDOUT, errno.ENOENT, errno.EAGAIN, errno.EBUSY),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH),
    *(getattr(errno, name) for name in ("ESTALE", "EREMOTEIO") if hasattr(errno, name)),
}


def retried(work: Callable[[], T], before_next: Callable[[], None] = lambda: None) -> T:
    """Do some work; errors that may pass are tried again from the start.

    Args:
        before_next: called before each further attempt.

    Raises:
        OSError: another one, or the last time.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return work()
        except OSError as error:
            if error.errno not in _PASSING or attempt == _ATTEMPTS:
                raise
            before_next()
            time.sleep(_PAUSE * 4 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")
