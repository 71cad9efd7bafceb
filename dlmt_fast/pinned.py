"""Batches from main memory, transformed on a GPU while it works on the batch before.

Each batch is copied through pinned memory and transformed on a second stream, so that neither the copy nor the
transform stands in the way of the training on the current stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import backends
from .arrays import is_tensor
from .errors import InputTypeError, ParameterError, missing
from .functional import encrypt
from .schemes.plan import Plan


def encrypt_batches(
    batches: Iterable[Any],
    plan: Plan | Callable[[Any], Any],
    device: Any = "cuda",
    layout: str = "NCHW",
    ahead: int = 1,
) -> Iterator[Any]:
    """Batches on the device, the images transformed, in the order in which they came.

    Args:
        batches: images, or tuples or lists whose first item is images: uint8 in main memory, numpy.ndarray or
            torch.Tensor. A batch that lies in pinned memory already (`DataLoader(pin_memory=True)`) is not copied in
            main memory again. Other items that are arrays or tensors (targets) go to the device as they are, all else
            stays.
        plan: for all batches; or a function from images on the device to the result, such as `transforms.Encrypt`,
            which is called with the second stream as the current one.
        device: the CUDA device.
        layout: as for `encrypt`, where `plan` is a plan.
        ahead: how many batches are under way while the caller has another: more memory, and longer loaders' pauses are
            bridged.

    Yields:
        What came, with CUDA tensors. They are ready for the stream that is current when they are handed out, and their
        memory is not given to others before the work that this stream has by the time they are dropped is done.

    Raises:
        BackendError: CUDA cannot run here, or torch is missing.
        InputTypeError, InputShapeError: as `encrypt` does, when the batch's turn comes. An exception of `batches` comes
            after the batches before it.
    """
    backends.get("cuda")
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1:
        raise ParameterError(f"ahead must be an integer of at least 1, got {ahead!r}")
    try:
        import torch
    except ModuleNotFoundError:
        raise missing("torch", "dlmt_fast.pinned", "torch") from None
    transform = (lambda images: encrypt(images, plan, layout=layout)) if isinstance(plan, Plan) else plan
    return _run(iter(batches), transform, torch.device(device), ahead)


def _run(batches: Iterator[Any], transform: Callable[[Any], Any], device: Any, ahead: int) -> Iterator[Any]:
    import torch

    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    under_way: deque[tuple[Any, Any]] = deque()
    failure: BaseException | None = None
    while True:
        while failure is None and len(under_way) <= ahead:
            try:
                under_way.append(_begin(next(batches), transform, device, side))
            except StopIteration as end:
                failure = end
            except BaseException as error:  # noqa: BLE001 - raised when its turn comes
                failure = error
        if not under_way:
            break
        batch, ready = under_way.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        for item in batch if isinstance(batch, (tuple, list)) else [batch]:
            if is_tensor(item) and item.is_cuda:
                item.record_stream(current)
        yield batch
        del batch
    if failure is not None and not isinstance(failure, StopIteration):
        raise failure


def _begin(batch: Any, transform: Callable[[Any], Any], device: Any, side: Any) -> tuple[Any, Any]:
    """Put copies and transform of one batch on the stream: (the batch to be, an event after it)."""
    import torch

    with torch.cuda.stream(side):
        if isinstance(batch, (tuple, list)):
            if not batch:
                raise InputTypeError("a batch is empty; expected images, or a tuple that begins with images")
            items = [_images(batch[0], transform, device), *(_moved(item, device) for item in batch[1:])]
            done: Any = type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
        else:
            done = _images(batch, transform, device)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(side)
    return done, ready


def _images(images: Any, transform: Callable[[Any], Any], device: Any) -> Any:
    if not isinstance(images, np.ndarray) and not (is_tensor(images) and images.is_cpu):
        raise InputTypeError(
            "a batch must be images in main memory (numpy.ndarray or torch.Tensor), or a tuple that begins with them; "
            f"got {type(images).__module__}.{type(images).__qualname__}"
        )
    return transform(_moved(images, device))


def _moved(item: Any, device: Any) -> Any:
    """Through pinned memory, without waiting; torch keeps that memory until the copy is done."""
    import torch

    if isinstance(item, np.ndarray):
        item = _tensor(item)
    if not isinstance(item, torch.Tensor) or not item.is_cpu:
        return item
    return (item if item.is_pinned() else item.pin_memory()).to(device, non_blocking=True)


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    """A tensor over the same memory, or over a copy where torch could not stand for it: read-only, negative strides."""
    import torch

    plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if plain else array.copy())
