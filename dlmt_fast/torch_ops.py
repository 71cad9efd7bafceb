"""`dlmt::affine`, `dlmt::affine_bounds`, `dlmt::affine_inverse` and `dlmt::transform`: what torch sees where it looks
at every operation.

In ordinary eager code `functional` calls a backend directly, which is faster. Under torch.compile, fake tensors, vmap
and dispatch modes it calls these operators, whose kernels come back to `functional`. The native module does not link
libtorch: one build serves every version.

The operators take a plan, or a whole transform, by its handle, an integer that means something in this process only, so
that no graph, cache or log that torch writes holds key material. They are not differentiable.

`affine` has one result and defaults, since both count: through torch.ops a call of 1x3x32x32 costs 5.0 us, of which 0.4
are the kernel; with room for bounds and all checks made twice it was 8.1.
"""

from __future__ import annotations

import functools
import secrets
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from .errors import InputTypeError, ParameterError, SecretExportError

#: Decrypting waits for the device, and a check compares on the host at every call, so both stay out of the CUDA graphs
#: that torch.compile makes (torch 2.8 and newer).
_ON_HOST = tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))
_TAGS = {"affine_inverse": _ON_HOST, "transform_on_host": _ON_HOST}
DEVICES = ("cpu", "cuda")
_OPTIONS = "int plan, str layout='NCHW', str backend='auto', int threads=0"
_SCHEMAS = {
    "affine": f"(Tensor images, {_OPTIONS}) -> Tensor",
    "affine_bounds": f"(Tensor images, {_OPTIONS}) -> (Tensor, Tensor)",
    "affine_inverse": f"(Tensor images, Tensor? bounds, {_OPTIONS}) -> Tensor",
    "transform": "(Tensor images, int transform) -> Tensor",
    "transform_on_host": "(Tensor images, int transform) -> Tensor",
}
_library: Any = torch.library  # its registration functions are untyped


class Transform(Protocol):
    """What `dlmt::transform` runs: images of any size, plans made as sizes come."""

    @property
    def result_dtype(self) -> torch.dtype: ...

    def transform_into(self, images: torch.Tensor, out: torch.Tensor) -> None:
        """Check `images` (3 or 4 axes), and write the result."""


_transforms: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(transform: Any) -> int:
    """A number that names a transform within this process; random, so that no cache on disk takes it for another's."""
    handle = secrets.randbits(62)
    _transforms[handle] = transform
    return handle


def transform(images: torch.Tensor, handle: int, on_host: bool) -> torch.Tensor:
    """What the registered transform makes of images, through the operator.

    Args:
        on_host: the host takes part in every call, so that no CUDA graph may stand for it.
    """
    _refuse_jit()
    operator = torch.ops.dlmt.transform_on_host if on_host else torch.ops.dlmt.transform
    result: torch.Tensor = operator(images, int(handle))
    return result


def affine(images: torch.Tensor, handle: int, layout: str, backend: str, threads: int | None) -> torch.Tensor:
    """The transformed images through the operator.

    Args:
        threads: None is decided when the operator runs.
    """
    _refuse_jit()
    result: torch.Tensor = torch.ops.dlmt.affine(images, int(handle), layout, backend, threads or 0)
    return result


def affine_bounds(
    images: torch.Tensor, handle: int, layout: str, backend: str, threads: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(result, bounds) through the operator; bounds are (N, 1 or C, 2)."""
    _refuse_jit()
    result: tuple[torch.Tensor, torch.Tensor] = torch.ops.dlmt.affine_bounds(
        images, int(handle), layout, backend, threads or 0
    )
    return result


def affine_inverse(
    images: torch.Tensor, bounds: torch.Tensor | None, handle: int, layout: str, backend: str, threads: int | None
) -> torch.Tensor:
    """uint8 images through the operator; bounds in the shape that `encrypt` returns, (N, 2) or (N, C, 2)."""
    _refuse_jit()
    result: torch.Tensor = torch.ops.dlmt.affine_inverse(images, bounds, int(handle), layout, backend, threads or 0)
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

    def shape(
        images: torch.Tensor, handle: int, layout: str = "NCHW", backend: str = "auto", threads: int = 0
    ) -> torch.Tensor:
        return _like(images, getattr(torch, plan_of(handle).dtype))

    def run(
        images: torch.Tensor, handle: int, layout: str = "NCHW", backend: str = "auto", threads: int = 0
    ) -> torch.Tensor:
        plan = plan_of(handle)
        y = _like(images, getattr(torch, plan.dtype))
        encrypt(images, plan, y, layout, backend, threads or None, False)
        return y

    def shapes_bounds(
        images: torch.Tensor, handle: int, layout: str = "NCHW", backend: str = "auto", threads: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan = plan_of(handle)
        count = images.shape[0] if images.ndim == 4 else 1
        groups = plan.shape[0] if plan.normalize == "minmax_channel" else 1
        return (
            _like(images, getattr(torch, plan.dtype)),
            images.new_empty((count, groups, 2), dtype=torch.int32),
        )

    def run_bounds(
        images: torch.Tensor, handle: int, layout: str = "NCHW", backend: str = "auto", threads: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, limits = shapes_bounds(images, handle)
        found: Any = encrypt(images, plan_of(handle), y, layout, backend, threads or None, True)
        return y, limits.copy_(found.reshape(limits.shape))

    def shape_inverse(images: torch.Tensor, bounds: Any, handle: int, *options: Any) -> torch.Tensor:
        return _like(images, torch.uint8)

    def run_inverse(
        images: torch.Tensor, bounds: Any, handle: int, layout: str = "NCHW", backend: str = "auto", threads: int = 0
    ) -> torch.Tensor:
        out = _like(images, torch.uint8)
        decrypt(images, plan_of(handle), bounds, out, layout, backend, threads or None)
        return out

    _register("affine", run, shape, _batched)
    _register("affine_bounds", run_bounds, shapes_bounds, _batched_bounds)
    _register("affine_inverse", run_inverse, shape_inverse, _batched_inverse)
    for name in ("transform", "transform_on_host"):
        _register(name, _run_transform, _shape_transform, _batched_transform(name))


def _register(name: str, run: Any, shape: Any, batched: Any) -> None:
    _library.define(f"dlmt::{name}", _SCHEMAS[name], tags=_TAGS.get(name, ()))
    _library.register_kernel(f"dlmt::{name}", DEVICES, run)
    _library.register_fake(f"dlmt::{name}", _before_export(shape))
    _library.register_vmap(f"dlmt::{name}", batched)


def _like(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Memory for the result, made alike by kernels and shape functions, so that strides agree."""
    if images.requires_grad:
        raise InputTypeError("images requires grad, and this transform is not differentiable; pass tensor.detach()")
    return torch.empty_like(images, dtype=dtype)


def _transform_of(handle: int) -> Transform:
    found: Transform | None = _transforms.get(handle)
    if found is None:
        raise ParameterError("this graph was made with a transform that no longer exists in this process; make it anew")
    return found


def _run_transform(images: torch.Tensor, handle: int) -> torch.Tensor:
    transform = _transform_of(handle)
    out = _like(images, transform.result_dtype)
    transform.transform_into(images, out)
    return out


def _shape_transform(images: torch.Tensor, handle: int) -> torch.Tensor:
    return _like(images, _transform_of(handle).result_dtype)


def _batched(info: Any, in_dims: Any, images: torch.Tensor, *rest: Any) -> Any:
    """vmap: its axis becomes the batch, or is merged with it."""
    flat, size = _flatten(images, in_dims[0])
    return _split(torch.ops.dlmt.affine(flat, *rest), images, size), 0


def _batched_bounds(info: Any, in_dims: Any, images: torch.Tensor, *rest: Any) -> Any:
    flat, size = _flatten(images, in_dims[0])
    y, bounds = torch.ops.dlmt.affine_bounds(flat, *rest)
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


def _batched_transform(name: str) -> Any:
    def batched(info: Any, in_dims: Any, images: torch.Tensor, handle: int) -> Any:
        flat, size = _flatten(images, in_dims[0])
        return _split(getattr(torch.ops.dlmt, name)(flat, handle), images, size), 0

    return batched


def _flatten(images: torch.Tensor, dim: int) -> tuple[torch.Tensor, int]:
    """vmap's axis in front, merged with a batch axis where the mapped images have one of their own."""
    moved = images.movedim(dim, 0)
    return (moved.flatten(0, 1) if moved.ndim == 5 else moved), moved.shape[0]


def _split(result: torch.Tensor, images: torch.Tensor, size: int) -> torch.Tensor:
    return result.reshape(size, -1, *result.shape[1:]) if images.ndim == 5 else result


def _before_export(shape: Any) -> Any:
    """A shape function that refuses where torch.export asks. It is asked there, and not in the calls above, since those
    are traced, and torch 2.7 to 2.11 traces `is_exporting()` as True for torch.compile as well."""

    @functools.wraps(shape)
    def asked(*arguments: Any) -> Any:
        _refuse(_is_exporting())
        return shape(*arguments)

    return asked


_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.7


def _refuse_jit() -> None:
    """torch.jit sees real tensors, and would bake the example's result in."""
    _refuse(not torch.compiler.is_compiling() and torch._C._is_tracing())


def _refuse(exported: bool) -> None:
    if exported:
        raise SecretExportError(
            "a dlmt transform cannot be part of an exported graph (torch.export, ONNX, torch.jit): whoever runs the "
            "graph would need the key. Transform the images before the model, and export the model alone"
        )
