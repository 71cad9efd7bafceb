"""One piece of a call compared with the reference, and the words for what differs. Used by `checking` alone."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import is_tensor
from .direct import default_threads
from .functional import encrypt_now, runs_on, unobserved
from .schemes.plan import FLOATS, Plan


@dataclass(frozen=True)
class Difference:
    """The first value of a call that differs from the reference.

    Attributes:
        index: its place in the caller's own layout.
        of: "images", or "bounds" where the min-max bounds differ.
        got, expected: the values, floats with their bits.
        pixel: what was transformed there; None for bounds.
        differ, values: how many differ of how many that were compared with it.
        backend, place: what computed it, such as "native" and "CPU level avx2", or "cuda" and a device.
        call: kind, shape, layout, threads of the call.
        plan: the plan's public parameters and the key's fingerprint.
        again: what the backend gives for the compared images alone, once more.
        reproduction: a Python program whose only argument is the key file.
    """

    index: tuple[int, ...]
    of: str
    got: str
    expected: str
    pixel: int | None
    differ: int
    values: int
    backend: str
    place: str
    call: str
    plan: str
    again: str
    reproduction: str

    def __str__(self) -> str:
        pixel = "" if self.pixel is None else f", for the pixel {self.pixel}"
        lines = [
            f"the {self.of} differ from the reference, first at index {list(self.index)}: "
            f"got {self.got}, expected {self.expected}{pixel}",
            f"  {self.differ} of {self.values} values compared differ; backend {self.backend}, {self.place}",
            f"  call: {self.call}",
            f"  plan: {self.plan}",
            f"  {self.again}",
            "  to reproduce: save these lines as a file, and run it with the key file as its argument",
        ]
        return "\n".join(lines + ["    " + line for line in self.reproduction.splitlines()])


@dataclass
class Call:
    """What all pieces of a call share, taken when it was made."""

    plan: Plan
    layout: str
    backend: str
    place: str
    threads: int
    kind: str
    device: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]  # as they lie in memory, the outermost first
    in_place: bool

    def __str__(self) -> str:
        where = f" on {self.device}" if self.device != "cpu" else ""
        extra = ", in place" if self.in_place else ""
        return f"{self.kind} uint8 {self.shape}{where}, layout {self.layout}, threads {self.threads}{extra}"


@dataclass(eq=False)
class Piece:
    """Copies of some images of a call and of their results."""

    call: Call
    part: slice | None  # of the batch; None for one image
    images: Any
    result: Any
    bounds: Any
    ready: Any  # an event after which the copies are there
    last: bool


def described(images: Any, plan: Plan, in_place: bool, layout: str, backend: str, threads: int | None) -> Call:
    """A call in which `encrypt` found nothing wrong."""
    tensor = is_tensor(images)
    strides = images.stride() if tensor else images.strides
    name, place = runs_on(images, backend)
    return Call(
        plan=plan,
        layout=layout,
        backend=name,
        place=place,
        threads=threads or default_threads(),
        kind="torch" if tensor else "numpy",
        device=str(images.device) if tensor else "cpu",
        shape=tuple(images.shape),
        axes=tuple(sorted(range(images.ndim), key=lambda axis: -abs(strides[axis]))),
        in_place=in_place,
    )


def parts_of(
    images: Any, plan: Any, layout: Any, most_bytes: int, everything: bool, offset: float
) -> list[slice | None]:
    """Which images are compared; none where `encrypt` will refuse them or there is none, and none while a CUDA graph is
    captured: nothing is computed then, and no replay comes by here."""
    if not isinstance(plan, Plan) or not (isinstance(images, np.ndarray) or is_tensor(images)):
        return []
    if getattr(images, "is_cuda", False) and sys.modules["torch"].cuda.is_current_stream_capturing():
        return []
    if not (str(layout).startswith("N") and images.ndim == 4):
        return [None]
    count, most = len(images), max(1, most_bytes // math.prod(plan.shape))
    if everything:
        return [slice(first, first + most, 1) for first in range(0, count, most)]
    step = -(-count // most)
    return [slice(int(offset * step), None, step)] if count else []


def copied(values: Any, part: slice | None) -> Any:
    """A copy on the same device."""
    chosen = values if part is None else values[part]
    return np.array(chosen) if isinstance(chosen, np.ndarray) else chosen.detach().clone()


def event_after(images: Any) -> Any:
    """What the thread waits for before it reads copies that a device makes in its own time; None on the CPU."""
    if not getattr(images, "is_cuda", False):
        return None
    cuda = sys.modules["torch"].cuda
    event = cuda.Event()
    event.record(cuda.current_stream(images.device))
    return event


def _own_stream(device: str) -> AbstractContextManager[Any]:
    """Where copies to main memory are put, so that no other work of the device waits for them."""
    if not device.startswith("cuda"):
        return nullcontext()
    cuda = sys.modules["torch"].cuda
    stream: AbstractContextManager[Any] = cuda.stream(cuda.Stream(device))
    return stream


def _memory(values: Any) -> NDArray[Any]:
    """A NumPy array with the values' bits; bfloat16 as int16."""
    if isinstance(values, np.ndarray):
        return values
    values = values.cpu()
    if values.dtype is sys.modules["torch"].bfloat16:
        values = values.view(sys.modules["torch"].int16)
    array: NDArray[Any] = values.numpy()
    return array


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def compare(piece: Piece) -> tuple[int, int, Difference | None]:
    """(values compared, how many differ, the first of them in the caller's order)."""
    token = unobserved.set(True)
    try:
        with _own_stream(piece.call.device):
            return _compare(piece)
    finally:
        unobserved.reset(token)


def _compare(piece: Piece) -> tuple[int, int, Difference | None]:
    call = piece.call
    if piece.ready is not None:
        piece.ready.synchronize()
    images = piece.images if isinstance(piece.images, np.ndarray) else piece.images.cpu()
    wanted = encrypt_now(images, call.plan, None, call.layout, "reference", 1, True)
    pairs = [("images", _memory(piece.result), _memory(wanted[0]))]
    if piece.bounds is not None:
        pairs.append(("bounds", _memory(piece.bounds), _memory(wanted[1])))
    wrong = [_bits(got) != _bits(want) for _, got, want in pairs]
    values, differ = sum(w.size for w in wrong), sum(int(np.count_nonzero(w)) for w in wrong)
    if not differ:
        return values, 0, None
    (of, got, want), where = next((pair, w) for pair, w in zip(pairs, wrong, strict=True) if w.any())
    local = tuple(int(i) for i in np.unravel_index(int(where.argmax()), where.shape))
    index = local if piece.part is None else (piece.part.start + piece.part.step * local[0], *local[1:])
    pixels = _memory(images)
    dtype = call.plan.dtype if of == "images" else "int32"
    difference = Difference(
        index=index,
        of=of,
        got=_shown(got[local], dtype),
        expected=_shown(want[local], dtype),
        pixel=int(pixels[local]) if of == "images" else None,
        differ=differ,
        values=values,
        backend=call.backend,
        place=call.place,
        call=str(call),
        plan=_public(call.plan),
        again=_again(images, call, pairs),
        reproduction=_reproduction(call, of, index, local, pixels),
    )
    return values, differ, difference


def _shown(value: Any, dtype: str) -> str:
    if dtype not in FLOATS:
        return str(int(value))
    bits = int(value.view(f"u{value.itemsize}"))
    number = np.uint32(bits << 16).view(np.float32) if dtype == "bfloat16" else value
    return f"{number} (0x{bits:0{2 * value.itemsize}x})"


def _public(plan: Plan) -> str:
    statistics = f", mean {plan.mean.tolist()}, std {plan.std.tolist()}" if plan.dtype in FLOATS else ""
    return (
        f"{plan.scheme!r}, shape {plan.shape}, normalize {plan.normalize!r}, dtype {plan.dtype!r}{statistics}; "
        f"key fingerprint {plan.fingerprint}"
    )


def _again(images: Any, call: Call, pairs: list[tuple[str, NDArray[Any], NDArray[Any]]]) -> str:
    """Whether it happens again; a fault that does not has to do with the moment, or with the rest of the batch."""
    if call.device != "cpu":
        return f"not tried again on {call.device}"
    given = encrypt_now(images, call.plan, None, call.layout, call.backend, call.threads, True)
    same = all(np.array_equal(_bits(_memory(y)), _bits(pair[2])) for y, pair in zip(given, pairs, strict=False))
    return (
        f"these images alone, once more: {'right, so the rest of the call or the moment matter' if same else 'wrong'}"
    )


def _reproduction(call: Call, of: str, index: tuple[int, ...], local: tuple[int, ...], pixels: NDArray[Any]) -> str:
    """A program that makes images with the pixel in question, and compares the one value."""
    plan, layout, torch = call.plan, call.layout, call.kind == "torch"
    dtype = "narrowest" if plan.normalize == "none" and plan.dtype != "int32" else plan.dtype
    statistics = f", {plan.mean.tolist()}, {plan.std.tolist()}" if plan.dtype in FLOATS else ""
    sizes = tuple(call.shape[axis] for axis in call.axes)
    back = tuple(call.axes.index(axis) for axis in range(len(sizes)))
    transposed = "" if back == tuple(range(len(sizes))) else f".transpose{back}"
    lines = ["import sys", "import numpy as np", "import dlmt_fast as dlmt", *(["import torch"] if torch else [])]
    lines += [
        "key = dlmt.Key.load(sys.argv[1])",
        f'assert key.fingerprint == "{plan.fingerprint}"',
        f"scheme = dlmt.{plan.scheme!r}",
        f"plan = scheme.plan(key, {plan.shape}, {plan.normalize!r}, {dtype!r}{statistics})",
        f"images = np.zeros({sizes}, np.uint8){transposed}",
    ]
    if call.place.startswith("CPU level "):
        lines.append(f'dlmt.backends.get("{call.backend}").set_level("{call.place.removeprefix("CPU level ")}")')
    if plan.normalize.startswith("minmax"):
        lines += _same_extremes(call, of, index, local, pixels)
    if of == "images":
        lines.append(f"images[{', '.join(map(str, index))}] = {int(pixels[local])}")
    if torch:
        lines.append("images = torch.from_numpy(images)" + (f'.to("{call.device}")' if call.device != "cpu" else ""))
    given, out = "images", ""
    if call.in_place:
        lines.append(f"given = images.{'clone' if torch else 'copy'}()")
        given, out = "given", ", out=given"
    bounds, which = (", return_bounds=True", "[1]") if of == "bounds" else ("", "")
    taken = f"{which}[{', '.join(map(str, index))}]" + (".cpu().reshape(1)" if torch else "")
    lines += [
        f'got = dlmt.encrypt({given}, plan{out}, layout="{layout}", backend="{call.backend}", threads={call.threads}'
        f"{bounds}){taken}",
        f'want = dlmt.encrypt(images{".cpu()" if torch else ""}, plan, layout="{layout}", backend="reference"{bounds})'
        f"{taken}",
        "same = torch.equal(got.view(torch.uint8), want.view(torch.uint8))"
        if torch
        else "same = got.tobytes() == want.tobytes()",
        'assert same, f"got {got}, expected {want}"',
    ]
    return "\n".join(lines)


def _same_extremes(
    call: Call, of: str, index: tuple[int, ...], local: tuple[int, ...], pixels: NDArray[Any]
) -> list[str]:
    """Min-max: lines that give the image the bounds of the one that differs, from its smallest and largest pixel."""
    plan, channels_first = call.plan, call.layout.endswith("CHW")
    image = pixels if pixels.ndim == 3 else pixels[local[0]]
    image = image if channels_first else image.transpose(2, 0, 1)
    k = plan.coefficients("CHW")
    v = (image.reshape(k.M.shape).astype(np.int64) * k.M + k.B).reshape(plan.shape)
    first = 0
    if plan.normalize == "minmax_channel":
        first = (local[-2] if of == "bounds" else local[-3 if channels_first else -1]) * v[0].size
        v = v[first // v[0].size]
    low, high = (
        ", ".join(str(int(i)) for i in np.unravel_index(first + int(found), plan.shape))
        for found in (v.argmin(), v.argmax())
    )
    at = [int(part) for part in low.split(", ")]
    end = [int(part) for part in high.split(", ")]
    place = f"images[{index[0]}]" if pixels.ndim == 4 else "images[...]"
    return [
        "M, B = (m.astype(np.int64) for m in scheme.matrices(key, plan.shape))",
        f"low = {int(image[tuple(at)])} * M[{low}] + B[{low}]  # no value of the image is smaller",
        "image = np.clip(np.where(M > 0, -((B - low) // M), (low - B) // M), 0, 255).astype(np.uint8)",
        f"image[{high}] = {int(image[tuple(end)])}  # none is larger",
        f"{place} = image{'' if channels_first else '.transpose(1, 2, 0)'}",
    ]
