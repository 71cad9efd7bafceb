"""The contenders of the GPU benchmark: limits, ours, and each peer in its best reasonable form.

A peer whose package is missing is left out by name. "equal" peers give the contract's bits; the others round as their
users would have it, and are held to one gray level.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import dlmt_fast as dlmt
from dlmt_fast.bench.gpu import Cell, Contender, Set
from dlmt_fast.schemes import Plan

PACKAGES = {
    "torch eager": "torch",
    "torch.compile": "triton",
    "triton": "triton",
    "cupy": "cupy",
    "numba-cuda": "numba_cuda",
}
Field = Callable[[Cell, Plan, list[Set]], Iterator[Contender]]


def missing() -> list[str]:
    """Peers that cannot take part here."""
    return [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]


def limits(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    """Moving the bytes: a copy (uint8) or a cast of the same mix of reads and writes."""
    module: Any = dlmt.backends.get("cuda")

    def ours(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        module.copy(images.data_ptr(), out.data_ptr(), images.numel(), cell.dtype, images.get_device(), stream)
        return out

    yield Contender("limit: torch copy_", "limit", lambda images, out: out.copy_(images), None)
    yield Contender("limit: plain kernel", "limit", ours, None)


def ours(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    yield Contender("dlmt cuda", "ours", lambda images, out: dlmt.encrypt(images, plan, out=out, backend="cuda"))


def torch_eager(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    """As usually written, in pieces of images where the temporaries would be larger than 8 GiB."""
    m, b = (matrix.cuda() for matrix in _integers(plan))
    statistics = [
        torch.tensor(values, device="cuda", dtype=torch.float32).view(-1, 1, 1) for values in _statistics(plan)
    ]

    def whole(x: torch.Tensor) -> torch.Tensor:
        v = x.to(torch.int32) * m + b
        lo, hi = _limits(v, plan)
        y = (v - lo) / (hi - lo)
        if cell.dtype == "uint8":
            return (y * 255).round().to(torch.uint8)
        return ((y - statistics[0]) / statistics[1]).to(getattr(torch, cell.dtype))

    step = max(1, (8 << 30) // (16 * m.numel()))

    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if len(images) <= step:
            return whole(images)
        for i in range(0, len(images), step):
            out[i : i + step] = whole(images[i : i + step])
        return out

    yield Contender("torch eager", "peer", run, "1 level")


def torch_compile(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    torch._dynamo.reset()  # else the cells before count as recompilations of the same code, of which a few are allowed
    scale, shift = _folded(plan)
    dtype, per_image = getattr(torch, cell.dtype), plan.normalize == "minmax"

    @torch.compile(dynamic=False, fullgraph=True)
    def fused(x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> None:
        v = x * scale + shift
        if per_image:
            lo, hi = v.amin((1, 2, 3), True), v.amax((1, 2, 3), True)
            v = (v - lo) * (255.0 / (hi - lo))
        out.copy_(v.round().to(torch.uint8) if dtype == torch.uint8 else v)

    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        fused(images, out, scale, shift)
        return out

    yield Contender("torch.compile", "peer", run, "1 level")


def triton_plain(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    import cuda_triton as kernels

    count, size = len(sets[0][0]), sets[0][0][0].numel()
    if plan.normalize == "minmax":
        m, b = (matrix.cuda() for matrix in _integers(plan))
        if size > 1 << 20:  # an image a program would leave most of the device idle
            yield Contender("triton", "peer", _two_launches(kernels, m, b, 2048, 1, count), "1 level")
            return

        def minmax(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            kernels.plain_minmax[(count,)](images, m, b, out, size, BLOCK=4096, num_warps=8)
            return out

        yield Contender("triton", "peer", minmax, "1 level")
        return
    scale, shift = _folded(plan)

    def ranged(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        grid = (-(-size // 1024), count)
        kernels.plain_range[grid](images, scale, shift, out, size, HALF=cell.dtype == "uint8", BLOCK=1024)
        return out

    yield Contender("triton", "peer", ranged, "1 level")


def triton_kept(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    """The fastest of several sizes of block: key-stationary."""
    import cuda_triton as kernels

    count, size = len(sets[0][0]), sets[0][0][0].numel()
    found: list[tuple[str, str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = []
    if plan.normalize == "minmax":
        m, b = (matrix.cuda() for matrix in _integers(plan))
        if size <= 4096:
            for images_, warps, blocks in ((1, 4, 8), (1, 8, 4), (2, 8, 4), (2, 8, 2), (4, 16, 2)):
                found.append(
                    (f"{images_} images, {warps} warps", "1 level", _kept_minmax(kernels, m, b, images_, warps, blocks))
                )
        else:
            for block, images_ in ((1024, 4), (2048, 4), (2048, 8), (4096, 4)):
                groups = _groups(block, size, count, images_)
                found.append((f"{block} x {images_}", "1 level", _two_launches(kernels, m, b, block, images_, groups)))
    elif cell.dtype == "uint8":
        k = plan.coefficients("CHW")
        assert k.M24 is not None
        assert k.B24 is not None
        m24, b24 = (torch.from_numpy(a.view(np.int32).copy()).cuda() for a in (k.M24, k.B24))
        for block, images_, warps in ((1024, 4, 4), (2048, 2, 4), (2048, 4, 4), (2048, 8, 4), (4096, 4, 8)):
            found.append((f"{block} x {images_}", "equal", _kept(kernels.kept_fixed, m24, b24, block, images_, warps)))
    else:
        scale, shift = _folded(plan)
        for block, images_, warps in ((512, 4, 4), (1024, 4, 4), (1024, 8, 4), (2048, 4, 4), (2048, 4, 8)):
            run = _kept(kernels.kept_range, scale, shift, block, images_, warps, HALF=False)
            found.append((f"{block} x {images_}", "1 level", run))
    name, agreement, run = min(found, key=lambda each: _quick(each[2], sets))
    yield Contender(f"triton key-stationary ({name})", "peer", run, agreement)


def _kept(kernel: Any, first: Any, second: Any, block: int, images_: int, warps: int, **fixed: Any) -> Any:
    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        count, size = len(images), images[0].numel()
        groups = _groups(block, size, count, images_)
        whole = size % block == 0 and count % images_ == 0
        kernel[(-(-size // block), groups)](
            images, first, second, out, size, count, groups,
            BLOCK=block, IMAGES=images_, WHOLE=whole, num_warps=warps, **fixed,
        )  # fmt: skip
        return out

    return run


def _kept_minmax(kernels: Any, m: Any, b: Any, images_: int, warps: int, blocks: int) -> Any:
    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        count, size = len(images), images[0].numel()
        block = 1 << (size - 1).bit_length()
        grid = (min(-(-count // images_), blocks * _multiprocessors()),)
        kernels.kept_minmax[grid](images, m, b, out, size, count, BLOCK=block, IMAGES=images_, num_warps=warps)
        return out

    return run


def _two_launches(kernels: Any, m: Any, b: Any, block: int, images_: int, groups: int) -> Any:
    ready: dict[int, Any] = {}

    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        count, size = len(images), images[0].numel()
        if count not in ready:
            begin = torch.tensor([[2**31 - 1], [-(2**31)]], dtype=torch.int32, device="cuda").repeat(1, count)
            ready[count] = begin, torch.empty_like(begin)
        begin, now = ready[count]
        now.copy_(begin)
        grid = (-(-size // block), groups)
        fixed = {"BLOCK": block, "IMAGES": images_, "num_warps": 4}
        kernels.extremes[grid](images, m, b, now[0], now[1], size, count, groups, **fixed)
        kernels.rescale[grid](images, m, b, now[0], now[1], out, size, count, groups, **fixed)
        return out

    return run


def _groups(block: int, size: int, count: int, images_: int) -> int:
    """So many that about 16 blocks a multiprocessor are launched, as far as there are images."""
    slices = -(-size // block)
    return max(1, min(-(-count // images_), -(-16 * _multiprocessors() // slices)))


def _multiprocessors() -> int:
    return int(torch.cuda.get_device_properties(0).multi_processor_count)


def _quick(run: Any, sets: list[Set]) -> float:
    """Seconds of the fastest of three turns through the sets, after one."""
    taken = []
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for each in sets:
            run(*each)
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return min(taken[1:])


def cupy_fused(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    import cupy

    if cell.dtype == "bfloat16":
        return
    views = {tensor.data_ptr(): cupy.from_dlpack(tensor) for pair in sets for tensor in pair}
    if plan.normalize == "minmax":
        m, b = (cupy.asarray(a.numpy()) for a in _integers(plan))
        lowest = cupy.ReductionKernel(
            "uint8 x, int32 m, int32 c", "int32 y", "(int)x * m + c", "min(a, b)", "y = a", "2147483647", "dlmt_lowest"
        )
        highest = cupy.ReductionKernel(
            "uint8 x, int32 m, int32 c",
            "int32 y",
            "(int)x * m + c",
            "max(a, b)",
            "y = a",
            "-2147483647",
            "dlmt_highest",
        )
        rescale = cupy.ElementwiseKernel(
            "uint8 x, int32 m, int32 b, int32 lo, int32 hi",
            "uint8 y",
            "y = (unsigned char)((float)((int)x * m + b - lo) * (255.0f / (float)(hi - lo)) + 0.5f)",
            "dlmt_rescale",
        )

        def minmax(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            x = views[images.data_ptr()]
            lo, hi = (found(x, m, b, axis=(1, 2, 3), keepdims=True) for found in (lowest, highest))
            rescale(x, m, b, lo, hi, views[out.data_ptr()])
            return out

        yield Contender("cupy fused", "peer", minmax, "1 level")
        return
    scale, shift = (cupy.from_dlpack(a) for a in _folded(plan))
    half = "(unsigned char)(x * scale + shift + 0.5f)" if cell.dtype == "uint8" else "x * scale + shift"
    kind = "uint8" if cell.dtype == "uint8" else "float32"
    fused = cupy.ElementwiseKernel("uint8 x, float32 scale, float32 shift", f"{kind} y", f"y = {half}", "dlmt_range")

    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        fused(views[images.data_ptr()], scale, shift, views[out.data_ptr()])
        return out

    yield Contender("cupy fused", "peer", run, "1 level")


def numba_cuda(cell: Cell, plan: Plan, sets: list[Set]) -> Iterator[Contender]:
    from numba import cuda

    if cell.dtype == "bfloat16" or plan.normalize == "minmax":
        return  # no bfloat16 arrays; and a reduction over blocks is not its field
    kind = np.uint8 if cell.dtype == "uint8" else np.float32
    half = np.float32(0.5 if cell.dtype == "uint8" else 0.0)
    views = {tensor.data_ptr(): cuda.as_cuda_array(tensor.view(-1)) for pair in sets for tensor in pair}
    scale, shift = (cuda.as_cuda_array(a.view(-1)) for a in _folded(plan))
    count, size = len(sets[0][0]), sets[0][0][0].numel()

    @cuda.jit(fastmath=True)
    def kernel(x, scale, shift, y, size):  # type: ignore[no-untyped-def]
        position = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if position < size:
            at = np.int64(cuda.blockIdx.y) * size + position
            y[at] = kind(np.float32(x[at]) * scale[position] + shift[position] + half)

    def run(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        kernel[(-(-size // 256), count), 256](views[images.data_ptr()], scale, shift, views[out.data_ptr()], size)
        return out

    yield Contender("numba-cuda", "peer", run, "1 level")


def _integers(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    k = plan.coefficients("CHW")
    m, b = (torch.from_numpy(a.reshape(plan.shape).copy()) for a in (k.M, k.B))
    return m, b


def _statistics(plan: Plan) -> tuple[list[float], list[float]]:
    return plan.mean.tolist(), plan.std.tolist()


def _limits(v: torch.Tensor, plan: Plan) -> tuple[Any, Any]:
    if plan.normalize != "minmax":
        return plan.lo, plan.hi
    return v.amin((1, 2, 3), True), v.amax((1, 2, 3), True)


def _folded(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 scale and shift a position, with normalisation, mean and std folded in; v itself for min-max."""
    m, b = (a.double() for a in _integers(plan))
    if plan.normalize == "minmax":
        return m.float().cuda(), b.float().cuda()
    unit = (255.0 if plan.dtype == "uint8" else 1.0) / (plan.hi - plan.lo)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in _statistics(plan))
    return (m * unit / std).float().cuda(), (((b - plan.lo) * unit - mean) / std).float().cuda()


FIELDS: dict[str, Field] = {
    "torch eager": torch_eager,
    "torch.compile": torch_compile,
    "triton": triton_plain,
    "triton key-stationary": triton_kept,
    "cupy": cupy_fused,
    "numba-cuda": numba_cuda,
}
#: Of which package each depends.
NEEDS = {name: PACKAGES.get(name, "triton") for name in FIELDS}
