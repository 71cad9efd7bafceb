"""The contenders that an installation can field: the machine's limit, our backends, NumPy, torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..functional import encrypt
from ..schemes import Plan
from .harness import Contender
from .workloads import Operation, Workload

Images = NDArray[np.uint8]


def installed_contenders(workload: Workload, operation: Operation, images: Images, threads: int) -> list[Contender]:
    """The limit, our backends, and the NumPy and torch peers that are installed."""
    plan = operation.plan(workload)
    found = [*limits(operation, images, threads), *ours(plan, images, threads)]
    if threads == 1:
        found += numpy_peers(plan, images)
    if importlib.util.find_spec("torch") is not None:
        found += torch_peers(plan, images, threads)
    return found


def limits(operation: Operation, images: Images, threads: int) -> Iterator[Contender]:
    """Plain copies (uint8) or conversions (float32) of the same bytes; the fastest of them is the limit."""
    out = np.zeros(images.shape, operation.dtype)
    if threads == 1:
        yield Contender("limit: numpy copyto", "limit", partial(np.copyto, out, images))
    if backends.available()["native"] == "ok":
        from ..backends import native

        for streaming, kind in ((False, "ordinary"), (True, "streaming")):
            yield Contender(f"limit: {kind} stores", "limit", partial(native.copy, images, out, streaming, threads))
    elif threads > 1:
        import torch

        torch.set_num_threads(threads)
        source, target = torch.from_numpy(images), torch.from_numpy(out)
        yield Contender("limit: torch copy_", "limit", partial(target.copy_, source))


def ours(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    """Our fast backends, with a prepared plan and `out=`."""
    for name in ("native", "numba"):
        if backends.available()[name] == "ok":
            out = np.zeros(images.shape, plan.dtype)
            call = partial(encrypt, images, plan, out=out, backend=name, threads=threads)
            yield Contender(f"dlmt {name}", "ours", call, partial(_same, out))


def numpy_peers(plan: Plan, images: Images) -> Iterator[Contender]:
    """NumPy as usually written, and with preallocated buffers."""
    m, b = _matrices(plan)
    holder: list[NDArray[Any]] = []

    def usual() -> None:
        v = images.astype(np.int32) * m + b
        lo, hi = _limits(v, plan)
        y = (v - lo) / (hi - lo)
        holder[:] = [np.rint(y * 255).astype(np.uint8) if plan.dtype == "uint8" else y.astype(np.float32)]

    yield Contender("numpy", "peer", usual, lambda: holder[0], "1 level")

    scale, shift = _folded(plan, m, b)
    wide = np.empty(images.shape, np.float32)
    out = np.empty(images.shape, plan.dtype)

    def buffered() -> None:
        np.multiply(images, scale, out=wide)
        np.add(wide, shift, out=wide)
        if plan.normalize == "minmax":
            lo = wide.min((1, 2, 3), keepdims=True)
            np.subtract(wide, lo, out=wide)
            np.multiply(wide, _unit(plan) / wide.max((1, 2, 3), keepdims=True), out=wide)
        if plan.dtype == "uint8":
            np.rint(wide, out=wide)
            np.copyto(out, wide, casting="unsafe")
        else:
            np.copyto(out, wide)

    yield Contender("numpy out=", "peer", buffered, partial(_same, out), "1 level")


def torch_peers(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    """torch eager as usually written, and with preallocated buffers."""
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(images)
    m, b = (torch.from_numpy(a) for a in _matrices(plan))
    holder: list[Any] = []

    def usual() -> None:
        v = x.to(torch.int32) * m + b
        lo, hi = (
            (v.amin((1, 2, 3), True), v.amax((1, 2, 3), True)) if plan.normalize == "minmax" else (plan.lo, plan.hi)
        )
        y = (v - lo) / (hi - lo)
        holder[:] = [(y * 255).round().to(torch.uint8) if plan.dtype == "uint8" else y]

    yield Contender("torch eager", "peer", usual, lambda: holder[0].numpy(), "1 level")

    scale, shift = (torch.from_numpy(a) for a in _folded(plan, *_matrices(plan)))
    wide = torch.empty(images.shape, dtype=torch.float32)
    out = torch.empty(images.shape, dtype=getattr(torch, plan.dtype))

    def buffered() -> None:
        torch.mul(x, scale, out=wide)
        wide.add_(shift)
        if plan.normalize == "minmax":
            wide.sub_(wide.amin((1, 2, 3), True))
            wide.mul_(_unit(plan) / wide.amax((1, 2, 3), True))
        out.copy_(wide.round_() if plan.dtype == "uint8" else wide)

    yield Contender("torch out=", "peer", buffered, lambda: out.numpy(), "1 level")


def _matrices(plan: Plan) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    k = plan.coefficients("CHW")
    return k.M.reshape(plan.shape).copy(), k.B.reshape(plan.shape).copy()  # torch warns of read-only memory


def _folded(plan: Plan, m: NDArray[np.int32], b: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrices with the "range" normalisation folded in, as an informed user would write them."""
    if plan.normalize == "minmax":
        return m.astype(np.float32), b.astype(np.float32)
    unit = _unit(plan) / (plan.hi - plan.lo)
    return (m * unit).astype(np.float32), ((b - plan.lo) * unit).astype(np.float32)


def _unit(plan: Plan) -> float:
    return 255.0 if plan.dtype == "uint8" else 1.0


def _limits(v: NDArray[np.int32], plan: Plan) -> tuple[Any, Any]:
    if plan.normalize != "minmax":
        return plan.lo, plan.hi
    return v.min((1, 2, 3), keepdims=True), v.max((1, 2, 3), keepdims=True)


def _same(array: NDArray[Any]) -> NDArray[Any]:
    return array
