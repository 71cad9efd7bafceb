"""Peers beyond NumPy and torch eager, each in its best reasonable form; one that is not installed is left out by name.

torch.compile, Numba (float32, and the fixed-point key), OpenCV, albucore; torchvision v2 and kornia do ToDtype and
Normalize alone, without any key, and so show what a loader pays already.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from dlmt_fast.bench import Contender, Workload
from dlmt_fast.bench.contenders import Images, _folded, _matrices, _unit, installed_contenders
from dlmt_fast.bench.workloads import Operation
from dlmt_fast.schemes import Plan

PACKAGES = {
    "torch.compile": "torch",
    "numba": "numba",
    "opencv": "cv2",
    "albucore": "albucore",
    "torchvision": "torchvision",
    "kornia": "kornia",
}


def all_contenders(workload: Workload, operation: Operation, images: Images, threads: int) -> list[Contender]:
    """What is installed with the package, and every peer of this file that is installed."""
    plan = operation.plan(workload)
    found = installed_contenders(workload, operation, images, threads)
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            found += _FIELDS[name](plan, images, threads)
    return found


def missing() -> list[str]:
    """Peers that cannot take part here."""
    return [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]


def torch_compile(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(images)
    scale, shift = (torch.from_numpy(a) for a in _folded(plan, *_matrices(plan)))
    unit, to_uint8, per_image = _unit(plan), plan.dtype == "uint8", plan.normalize == "minmax"

    torch._dynamo.reset()  # else the workloads before count as recompilations, and after eight of them it runs eagerly
    torch._dynamo.config.fail_on_recompile_limit_hit = True

    @torch.compile(dynamic=False)
    def fused(x: Any, scale: Any, shift: Any) -> Any:
        v = x * scale + shift
        if per_image:
            lo, hi = v.amin((1, 2, 3), True), v.amax((1, 2, 3), True)
            v = (v - lo) * (unit / (hi - lo))
        return v.round().to(torch.uint8) if to_uint8 else v

    holder: list[Any] = []

    def call() -> None:
        holder[:] = [fused(x, scale, shift)]

    yield Contender("torch.compile", "peer", call, lambda: holder[0].numpy(), "1 level")


def numba_peers(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    import numba

    numba.set_num_threads(threads)
    loop = numba.prange
    x = images.reshape(len(images), -1)
    out = np.empty(x.shape, plan.dtype)
    scale, shift = (a.reshape(-1) for a in _folded(plan, *_matrices(plan)))
    jit = numba.njit(parallel=threads > 1, fastmath=True)
    kind = np.uint8 if plan.dtype == "uint8" else np.float32
    half = np.float32(0.5 if plan.dtype == "uint8" else 0.0)

    @jit
    def ranged(x, scale, shift, out):  # type: ignore[no-untyped-def]
        for n in loop(x.shape[0]):
            for p in range(x.shape[1]):
                out[n, p] = kind(np.float32(x[n, p]) * scale[p] + shift[p] + half)

    @jit
    def minmax(x, m, b, out):  # type: ignore[no-untyped-def]
        for n in loop(x.shape[0]):
            lo, hi = np.int32(2**31 - 1), np.int32(-(2**31))
            for p in range(x.shape[1]):
                v = np.int32(x[n, p]) * m[p] + b[p]
                lo, hi = min(lo, v), max(hi, v)
            s = np.float32(255) / np.float32(hi - lo)
            for p in range(x.shape[1]):
                out[n, p] = np.uint8(np.float32(np.int32(x[n, p]) * m[p] + b[p] - lo) * s + np.float32(0.5))

    result = lambda: out.reshape(images.shape)  # noqa: E731
    if plan.normalize == "minmax":
        m, b = (a.reshape(-1) for a in _matrices(plan))
        yield Contender("numba int32 fastmath", "peer", partial(minmax, x, m, b, out), result, "1 level")
        return
    yield Contender("numba float32 fastmath", "peer", partial(ranged, x, scale, shift, out), result, "1 level")
    k = plan.coefficients("CHW")
    if k.M24 is None or k.B24 is None:
        return
    m24, b24 = k.M24.reshape(-1), k.B24.reshape(-1)
    fixed_out = np.empty(x.shape, np.uint8)

    @jit
    def fixed(x, m24, b24, out):  # type: ignore[no-untyped-def]
        for n in loop(x.shape[0]):
            for p in range(x.shape[1]):
                out[n, p] = (np.uint32(x[n, p]) * m24[p] + b24[p]) >> np.uint32(24)

    yield Contender(
        "numba fixed point", "peer", partial(fixed, x, m24, b24, fixed_out), lambda: fixed_out.reshape(images.shape)
    )


def opencv(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    """Image by image with float32 matrices, as OpenCV users write it."""
    import cv2

    cv2.setNumThreads(threads)
    scale, shift = (a.reshape(1, -1) for a in _folded(plan, *_matrices(plan)))
    x = images.reshape(len(images), 1, -1)
    out = np.empty(x.shape, plan.dtype)
    wide = np.empty(scale.shape, np.float32)
    to_uint8, unit = plan.dtype == "uint8", _unit(plan)

    def call() -> None:
        for image, target in zip(x, out, strict=True):
            cv2.multiply(image, scale, wide, dtype=cv2.CV_32F)
            if plan.normalize == "minmax":
                cv2.add(wide, shift, wide)
                cv2.normalize(wide, target, 0, unit, cv2.NORM_MINMAX, cv2.CV_8U)
            elif to_uint8:
                cv2.add(wide, shift, target, dtype=cv2.CV_8U)
            else:
                cv2.add(wide, shift, target)

    yield Contender("opencv", "peer", call, lambda: out.reshape(images.shape), "1 level")


def albucore(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    """albucore's multiply and add with matrices, image by image; its uint8 results would saturate, so floats.

    Versions that clip floats to 0..1 in their first-choice functions have the same without clipping, through OpenCV.
    """
    import albucore as alb

    multiply = getattr(alb, "multiply_opencv", None) or alb.multiply_by_array
    add = getattr(alb, "add_opencv", None) or alb.add_array
    if plan.normalize == "minmax" or threads > 1:
        return
    scale, shift = (np.ascontiguousarray(a.transpose(1, 2, 0)) for a in _folded(plan, *_matrices(plan)))
    x = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    out = np.empty(x.shape, plan.dtype)

    def call() -> None:
        for i, image in enumerate(x):
            y = add(multiply(image.astype(np.float32), scale), shift)
            out[i] = np.rint(y) if plan.dtype == "uint8" else y

    yield Contender("albucore", "peer", call, lambda: out.transpose(0, 3, 1, 2), "1 level")


def torchvision_v2(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    import torch
    from torchvision.transforms import v2

    if plan.dtype != "float32":
        return
    torch.set_num_threads(threads)
    x = torch.from_numpy(images)
    c = images.shape[1]
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * c, [0.25] * c)])
    yield Contender("torchvision ToDtype+Normalize", "peer", lambda: transform(x), None, "no key")


def kornia(plan: Plan, images: Images, threads: int) -> Iterator[Contender]:
    import torch
    from kornia.enhance import normalize

    if plan.dtype != "float32":
        return
    torch.set_num_threads(threads)
    x = torch.from_numpy(images)
    mean, std = torch.full((images.shape[1],), 0.5), torch.full((images.shape[1],), 0.25)
    yield Contender("kornia normalize", "peer", lambda: normalize(x.float().div_(255), mean, std), None, "no key")


_FIELDS = {
    "torch.compile": torch_compile,
    "numba": numba_peers,
    "opencv": opencv,
    "albucore": albucore,
    "torchvision": torchvision_v2,
    "kornia": kornia,
}
