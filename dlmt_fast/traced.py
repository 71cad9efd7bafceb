"""`encrypt` and `decrypt` where torch looks on: the same checks from shapes and dtypes alone, then the operator.

Used by `functional`, which hands its own work to the operators' kernels, and by `transforms`.
"""

from __future__ import annotations

from typing import Any

import torch

from . import backends, functional, torch_ops
from .arrays import LAYOUTS, check_shape
from .direct import Direct
from .errors import BackendError, InputShapeError, InputTypeError, ParameterError, wrong_dtype
from .schemes.plan import Plan, plan_of


def encrypt(
    images: Any, plan: Plan, out: Any, layout: str, backend: str, threads: int | None, return_bounds: bool
) -> Any:
    """See `functional.encrypt`."""
    _check(images, "images", "uint8", plan, layout, backend, threads)
    if not return_bounds:
        return _into(out, torch_ops.affine(images, plan.handle, layout, backend, threads), plan, layout)
    y, bounds = torch_ops.affine_bounds(images, plan.handle, layout, backend, threads)
    y = _into(out, y, plan, layout)
    bounds = bounds if plan.normalize == "minmax_channel" else bounds.squeeze(1)
    return y, (bounds if images.ndim == 4 else bounds.squeeze(0))


def decrypt(images: Any, plan: Plan, bounds: Any, out: Any, layout: str, backend: str, threads: int | None) -> Any:
    """See `functional.decrypt`; the bounds' values are checked when the operator runs."""
    _check(images, "images", plan.dtype, plan, layout, backend, threads)
    if bounds is None and plan.normalize.startswith("minmax"):
        raise ParameterError(f'decrypting normalize="{plan.normalize}" needs each image\'s bounds')
    result = torch_ops.affine_inverse(images, bounds, plan.handle, layout, backend, threads)
    return _into(out, result, plan, layout)


def transform(images: Any, dtype: str, handle: int, on_host: bool) -> Any:
    """What a transform that was registered makes of images; it makes plans and checks when the operator runs, so that
    sizes may come at any time.

    Args:
        dtype: the name of what it takes.
        handle: from `register`.
        on_host: see `torch_ops.transform`.
    """
    if images.dtype != getattr(torch, dtype):
        raise wrong_dtype("images", dtype, str(images.dtype).removeprefix("torch."))
    return torch_ops.transform(images, handle, on_host)


register = torch_ops.register


def _run(images: Any, plan: Plan, out: Any, layout: str, backend: str, threads: int | None, return_bounds: bool) -> Any:
    if threads is None and not (return_bounds or functional.observers):
        found = plan.direct.get((layout, backend))
        if type(found) is Direct and found.torch_fresh(torch, images, out):
            return None
    result = functional.encrypt_now(images, plan, out, layout, backend, threads, return_bounds)
    return result[1] if return_bounds else None


torch_ops.define(plan_of, _run, functional.decrypt_now)


def _check(images: Any, role: str, dtype: str, plan: Plan, layout: str, backend: str, threads: int | None) -> None:
    if layout not in LAYOUTS:
        raise ParameterError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if backend != "auto" and backend not in backends.NAMES:
        raise ParameterError(f"unknown backend {backend!r}; expected auto, {', '.join(backends.NAMES)}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ParameterError(f"threads must be an integer of at least 1, or None; got {threads!r}")
    if images.dtype != getattr(torch, dtype):
        raise wrong_dtype(role, dtype, str(images.dtype).removeprefix("torch."))
    if images.device.type not in torch_ops.DEVICES:
        raise BackendError(
            f"{role} is on the device {images.device}; traced calls run on {', '.join(torch_ops.DEVICES)}"
        )
    if backend != "auto" and (backend == "cuda") != (images.device.type == "cuda"):
        raise BackendError(f'backend="{backend}" does not take {role} on the device {images.device}; use "auto"')
    if images.requires_grad:
        raise InputTypeError(f"{role} requires grad, and this transform is not differentiable; pass tensor.detach()")
    check_shape(role, tuple(images.shape), plan.shape, layout)


def _into(out: Any, result: Any, plan: Plan, layout: str) -> Any:
    if out is None:
        return result
    if not isinstance(out, torch.Tensor) or out.dtype != result.dtype:
        raise wrong_dtype(
            "out", str(result.dtype).removeprefix("torch."), str(getattr(out, "dtype", type(out).__name__))
        )
    if out.shape != result.shape:
        raise InputShapeError(f"out has shape {tuple(out.shape)}, the images {tuple(result.shape)}; they must be equal")
    return out.copy_(result)
