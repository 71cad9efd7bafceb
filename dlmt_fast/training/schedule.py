"""SGDR: the cosine learning rate with warm restarts (Loshchilov and Hutter, ICLR 2017, equation 5)."""

from __future__ import annotations

import math


def sgdr(epochs_done: float, lr: float, cycle: int, factor: int) -> float:
    """The learning rate after so many epochs, fractions of them included: from `lr` towards 0 in each cycle.

    Args:
        epochs_done: at least 0.
        lr: where each cycle begins.
        cycle: epochs of the first cycle; each next one lasts `factor` times as many.
    """
    start = 0
    while epochs_done >= start + cycle:
        start, cycle = start + cycle, cycle * factor
    return lr * (1 + math.cos(math.pi * (epochs_done - start) / cycle)) / 2
