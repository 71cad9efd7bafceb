"""What transforms batches of images: the plan of each shape, and where it is carried out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from ..functional import encrypt
from ..gpu_batches import GpuBatches
from ..keys import Key
from ..schemes import DLMT, Plan
from ..stores.contract import Array
from .options import JobOptions

PLANNED = 1 << 24  # values of images; photographs that keep their sizes have about as many shapes as there are images


class Plans:
    """One plan a shape, made when first needed; those used last are kept, for `PLANNED` values together."""

    def __init__(self, make: Callable[[tuple[int, ...]], Plan]) -> None:
        self._make, self._plans, self._pixels = make, dict[tuple[int, ...], Plan](), 0

    def of(self, images: Array) -> Plan:
        """The plan for a batch (N, C, H, W)."""
        shape = images.shape[1:]
        plan = self._plans.pop(shape, None)
        if plan is None:
            self._pixels += math.prod(shape)
            plan = self._make(shape)
        self._plans[shape] = plan  # the last one used is at the end
        while self._pixels > PLANNED and len(self._plans) > 1:
            oldest = next(iter(self._plans))
            del self._plans[oldest]
            self._pixels -= math.prod(oldest)
        return plan


def planner(scheme: DLMT, key: Key, options: JobOptions) -> Callable[[tuple[int, ...]], Plan]:
    """From a shape to its plan."""

    def make(shape: tuple[int, ...]) -> Plan:
        return scheme.plan(key, shape, options.normalize, options.dtype, options.mean, options.std)

    return make


#: From images (N, C, H, W), their plan, and whether a result may be written over them, to (result, bounds).
Transform: TypeAlias = Callable[[Array, Plan, bool], tuple[Array, Array]]


def transform_on(device: str, threads: int | None) -> Transform:
    """What transforms batches: `encrypt` with so many threads, or a GPU.

    Raises:
        BackendError: the device cannot be used here.
    """
    if device != "cpu":
        gpu = GpuBatches(device)
        return lambda images, plan, spare: gpu.encrypt(images, plan)

    def on_cpu(images: Array, plan: Plan, spare: bool) -> tuple[Array, Array]:
        over = images if spare and plan.dtype == "uint8" else None
        result: tuple[Array, Array] = encrypt(images, plan, over, threads=threads, return_bounds=True)
        return result

    return on_cpu
