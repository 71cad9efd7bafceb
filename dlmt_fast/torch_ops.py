"""`dlmt::affine` and `dlmt::affine_inverse`: what torch sees where it looks at every operation.

In ordinary eager code `functional` calls a backend directly, which is faster. Under torch.compile, fake tensors, vmap
and dispatch modes it calls these operators, whose kernels come back to `functional`. The native module does not link
libtorch: one build serves every version.

The operators take a plan by its handle, an integer that means something in this process only, so that no graph, cache
or log that torch writes holds key material. They are not differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .errors import InputTypeError, SecretExportError

_SCHEMAS = {
    "affine": "(Tensor images, int plan, str layout, str backend, int threads, bool bounds) -> (Tensor, Tensor)",
    "affine_inverse": "(Tensor images, Tensor? bounds, int plan, str layout, str backend, int threads) -> Tensor",
}
_library: Any = torch.library  # its registration functions are untyped


def affine(
    images: torch.Tensor, handle: int, layout: str, backend: str, threads: int | None, bounds: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(result, bounds) through the operator; bounds are (N, 1 or C, 2), with N = 0 where they are not asked for.

    Args:
        threads: None is decided when the operator runs.
    """
    _refuse_export()
    result: tuple[torch.Tensor, torch.Tensor] = torch.ops.dlmt.affine(
        images, handle, layout, backend, threads or 0, bounds
    )
    return result


def affine_inverse(
    images: torch.Tensor, bounds: torch.Tensor | None, handle: int, layout: str, backend: str, threads: int | None
) -> torch.Tensor:
    """uint8 images through the operator; bounds in the shape that `encrypt` returns, (N, 2) or (N, C, 2)."""
    _refuse_export()
    result: torch.Tensor = torch.ops.dlmt.affine_inverse(images, bounds, handle, layout, backend, threads or 0)
    return result


def define(
    plan_of: Callable[[int], Any], encrypt: Callable[..., torch.Tensor | None], decrypt: Callable[..., Any]
) -> None:
    """Define the operators, once. `functional` hands over how to find a plan and how to run it.

    Args:
        plan_of: from a handle to the plan.
        encrypt: (images, plan, out, layout, backend, threads, bounds) -> bounds if asked for, writes `out`.
        decrypt: (images, plan, bounds, out, layout, backend, threads), writes `out`.
    """
    for name, schema in _SCHEMAS.items():
        _library.define(f"dlmt::{name}", schema)

    def outputs(images: torch.Tensor, plan: Any, bounds: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for the results, made alike by kernels and shape functions, so that strides agree."""
        _refuse_grad(images)
        count = (images.shape[0] if images.ndim == 4 else 1) if bounds else 0
        groups = plan.shape[0] if plan.normalize == "minmax_channel" else 1
        return (
            torch.empty_like(images, dtype=getattr(torch, plan.dtype)),
            images.new_empty((count, groups, 2), dtype=torch.int32),
        )

    def run(images: torch.Tensor, handle: int, layout: str, backend: str, threads: int, bounds: bool) -> Any:
        plan = plan_of(handle)
        y, limits = outputs(images, plan, bounds)
        found = encrypt(images, plan, y, layout, backend, threads or None, bounds)
        if found is not None:
            limits.copy_(found.reshape(limits.shape))
        return y, limits

    def shapes(images: torch.Tensor, handle: int, layout: str, backend: str, threads: int, bounds: bool) -> Any:
        return outputs(images, plan_of(handle), bounds)

    def run_inverse(images: torch.Tensor, bounds: Any, handle: int, layout: str, backend: str, threads: int) -> Any:
        out = shape_inverse(images, bounds, handle, layout, backend, threads)
        decrypt(images, plan_of(handle), bounds, out, layout, backend, threads or None)
        return out

    def shape_inverse(images: torch.Tensor, bounds: Any, handle: int, layout: str, backend: str, threads: int) -> Any:
        _refuse_grad(images)
        return torch.empty_like(images, dtype=torch.uint8)

    _library.register_kernel("dlmt::affine", "cpu", run)
    _library.register_fake("dlmt::affine", shapes)
    _library.register_vmap("dlmt::affine", _batched)
    _library.register_kernel("dlmt::affine_inverse", "cpu", run_inverse)
    _library.register_fake("dlmt::affine_inverse", shape_inverse)
    _library.register_vmap("dlmt::affine_inverse", _batched_inverse)


def _batched(info: Any, in_dims: Any, images: torch.Tensor, *rest: Any) -> Any:
    """vmap: its axis becomes the batch, or is merged with it."""
    flat, size = _flatten(images, in_dims[0])
    y, bounds = torch.ops.dlmt.affine(flat, *rest)
    return (_split(y, images, size), bounds.reshape(size, -1, *bounds.shape[1:])), (0, 0)


def _batched_inverse(info: Any, in_dims: Any, images: torch.Tensor, bounds: Any, *rest: Any) -> Any:
    if in_dims[0] is None or (bounds is not None and in_dims[1] is None):
        raise InputTypeError("vmap over decrypt needs the images, and the bounds where there are any, to be batched")
    flat, size = _flatten(images, in_dims[0])
    if bounds is not None and images.ndim == 5:
        bounds = bounds.movedim(in_dims[1], 0).flatten(0, 1)
    elif bounds is not None:
        bounds = bounds.movedim(in_dims[1], 0)
    return _split(torch.ops.dlmt.affine_inverse(flat, bounds, *rest), images, size), 0


def _flatten(images: torch.Tensor, dim: int) -> tuple[torch.Tensor, int]:
    """vmap's axis in front, merged with a batch axis where the mapped images have one of their own."""
    moved = images.movedim(dim, 0)
    return (moved.flatten(0, 1) if moved.ndim == 5 else moved), moved.shape[0]


def _split(result: torch.Tensor, images: torch.Tensor, size: int) -> torch.Tensor:
    return result.reshape(size, -1, *result.shape[1:]) if images.ndim == 5 else result


def _refuse_grad(images: torch.Tensor) -> None:
    if images.requires_grad:
        raise InputTypeError("images requires grad, and this transform is not differentiable; pass tensor.detach()")


def _refuse_export() -> None:
    if torch.compiler.is_exporting():
        raise SecretExportError(
            "a dlmt transform cannot be part of an exported graph (torch.export, ONNX): whoever runs the graph would "
            "need the key. Transform the images before the model, and export the model alone"
        )
