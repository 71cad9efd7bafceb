"""The memory of inputs and outputs: any strides, `out=`, and no byte written that should not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlmt_fast as dlmt
from dlmt_fast import functional
from dlmt_fast.errors import BackendError, DlmtError, InputShapeError, InputTypeError, ParameterError

torch = pytest.importorskip("torch")

C, H, W = SHAPE = (3, 8, 6)
SECRET = bytes(range(32))
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}
ALL = [("none", "int32"), ("none", "narrowest"), ("range", "uint8"), ("minmax", "uint8"), ("minmax_channel", "float32")]


def plan_of(normalize: str = "range", dtype: str | None = None, shape: tuple[int, ...] = SHAPE) -> dlmt.Plan:
    return dlmt.DLMT("mat_mmt").plan(dlmt.Key(SECRET), shape, normalize, dtype)


def pixels(count: int = 5, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


# --- inputs ----------------------------------------------------------------------------------------------------------


def spaced(array: np.ndarray, *index: Any) -> np.ndarray:
    """The values of `array` as the view `memory[index]` of a larger array."""
    memory = np.zeros((50, 9, 40, 40), array.dtype)
    view = memory[index]
    view = view[tuple(slice(0, n) for n in array.shape)]
    assert view.shape == array.shape
    view[...] = array
    return view


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "channels last": lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "width first": lambda a: np.ascontiguousarray(a.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2),
    "batch last": lambda a: np.ascontiguousarray(a.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2),
    "crop": lambda a: spaced(a, ..., slice(3, None), slice(5, None)),
    "every second row": lambda a: spaced(a, ..., slice(None, None, 2), slice(None)),
    "every third column": lambda a: spaced(a, ..., slice(None, None, 3)),
    "every second image": lambda a: spaced(a, slice(1, None, 2)),
    "flipped columns": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "flipped rows": lambda a: np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1],
    "flipped channels": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "reversed batch": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "unaligned": lambda a: (
        np.frombuffer(b"x" + a.tobytes(), a.dtype if a.itemsize == 1 else "u1", offset=1).view(a.dtype).reshape(a.shape)
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("normalize", "dtype"), ALL)
def test_views_equal_contiguous_copies(normalize: str, dtype: str, view: str, backend: str) -> None:
    plan, images = plan_of(normalize, dtype), pixels()
    want, bounds = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
    source, received = VIEWS[view](images), VIEWS[view](want)
    before = source.tobytes(), received.tobytes()
    np.testing.assert_array_equal(dlmt.encrypt(source, plan, backend=backend), want)
    back = dlmt.decrypt(received, plan, bounds, backend=backend)
    np.testing.assert_array_equal(back, dlmt.decrypt(want, plan, bounds, backend="reference"))
    assert (source.tobytes(), received.tobytes()) == before, "the input was modified"


@pytest.mark.parametrize("axis", range(4))
def test_expanded_inputs(axis: int, backend: str) -> None:
    """A view whose elements share memory: one image for all, gray for three channels, one row, one column."""
    plan, images = plan_of("minmax", "float32"), pixels()
    narrow = images.take([0], axis)
    wide = np.broadcast_to(narrow, images.shape)
    want = dlmt.encrypt(np.ascontiguousarray(wide), plan, backend="reference")
    np.testing.assert_array_equal(dlmt.encrypt(wide, plan, backend=backend), want)
    tensor = torch.from_numpy(narrow).expand(images.shape)
    np.testing.assert_array_equal(dlmt.encrypt(tensor, plan, backend=backend).numpy(), want)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("view", ["contiguous", "channels last"])
@pytest.mark.parametrize(("normalize", "dtype"), ALL)
def test_the_result_keeps_the_memory_order(normalize: str, dtype: str, view: str, kind: str, backend: str) -> None:
    plan, source = plan_of(normalize, dtype), VIEWS[view](pixels())
    given_images: Any = torch.from_numpy(source) if kind == "torch" else source
    y, bounds = dlmt.encrypt(given_images, plan, backend=backend, return_bounds=True)
    x = dlmt.decrypt(y, plan, bounds, backend=backend)
    for result in (y, x):
        if kind == "torch":
            order = torch.contiguous_format if view == "contiguous" else torch.channels_last
            assert result.is_contiguous(memory_format=order)
        else:
            assert (result if view == "contiguous" else result.transpose(0, 2, 3, 1)).flags.c_contiguous


def test_large_strided_batches_pass_through_slices(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The staging buffers hold a few images each; the last one is not full."""
    plan, images = plan_of("none"), pixels(23)
    monkeypatch.setattr(functional, "STAGE_BYTES", 4 * C * H * W * 4)
    source = VIEWS["every second row"](images)
    y = dlmt.encrypt(source, plan, backend=backend)
    np.testing.assert_array_equal(y, dlmt.encrypt(images, plan, backend="reference"))
    y[22, 2, 7, 5] = 0
    with pytest.raises(dlmt.errors.DecryptError, match="first at image 22, channel 2, row 7, column 5"):
        dlmt.decrypt(VIEWS["every third column"](y), plan, backend=backend)


@given(data=st.data())
def test_any_strides_give_what_a_contiguous_copy_gives(data: st.DataObject) -> None:
    """Any order of the axes in memory, steps, flips and offsets, for input and output, on every backend."""
    shape = tuple(data.draw(st.integers(1, n), name) for n, name in ((4, "C"), (9, "H"), (9, "W")))
    normalize, dtype = data.draw(st.sampled_from(ALL), "normalize and dtype")
    plan, count = plan_of(normalize, dtype, shape), data.draw(st.integers(0, 7), "N")
    images = np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)
    want = dlmt.encrypt(images, plan, backend="reference")
    source = any_view(data, images, "images")
    out = any_view(data, np.zeros_like(want), "out") if data.draw(st.booleans(), "whether out is given") else None
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)), "layout")
    axes = LAYOUTS[layout]
    for backend in (name for name, state in dlmt.backends.available().items() if state == "ok" and name != "cuda"):
        named = {"layout": layout, "backend": backend, "threads": 2}
        y, bounds = dlmt.encrypt(
            source.transpose(axes), plan, out=None if out is None else out.transpose(axes), return_bounds=True, **named
        )
        np.testing.assert_array_equal(y, want.transpose(axes))
        back = dlmt.decrypt(y, plan, bounds, **named)
        back_want = dlmt.decrypt(want, plan, bounds, backend="reference")
        np.testing.assert_array_equal(back, back_want.transpose(axes))
        np.testing.assert_array_equal(source, images)


def any_view(data: st.DataObject, values: np.ndarray, name: str) -> np.ndarray:
    """`values` in memory of any order of axes, with gaps, offsets and negative strides."""
    order = data.draw(st.permutations(range(4)), f"{name}: order of the axes in memory")
    steps = [data.draw(st.sampled_from([1, 1, 2, -1, -3]), f"{name}: step {axis}") for axis in range(4)]
    sizes = [n * abs(step) + 1 for n, step in zip(values.shape, steps, strict=True)]
    memory = np.zeros([sizes[axis] for axis in order], values.dtype).transpose(np.argsort(order))
    view = memory[tuple(slice(None, None, step) for step in steps)]
    view = view[tuple(slice(0, n) for n in values.shape)]
    view[...] = values
    return view


# --- out= ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [name for name in VIEWS if name != "unaligned"])
@pytest.mark.parametrize(("normalize", "dtype"), ALL)
def test_out_of_any_strides(normalize: str, dtype: str, view: str, backend: str) -> None:
    plan, images = plan_of(normalize, dtype), pixels()
    want, bounds = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
    out = VIEWS[view](np.full_like(want, 1))
    assert dlmt.encrypt(images, plan, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, want)
    back = VIEWS[view](np.full_like(images, 1))
    assert dlmt.decrypt(want, plan, bounds, out=back, backend=backend) is back
    np.testing.assert_array_equal(back, dlmt.decrypt(want, plan, bounds, backend="reference"))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
def test_out_as_a_tensor(dtype: str, backend: str) -> None:
    plan, images = plan_of("range", dtype), torch.from_numpy(pixels())
    want = dlmt.encrypt(images, plan, backend="reference")
    for out in (torch.empty_like(want), torch.empty_like(want, memory_format=torch.channels_last)):
        assert dlmt.encrypt(images, plan, out=out, backend=backend) is out
        assert torch.equal(out, want)


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_out_of_one_image(layout: str, backend: str) -> None:
    plan = plan_of("none")
    axes = (0, 1, 2) if layout == "CHW" else (1, 2, 0)
    image = pixels(1)[0]
    out = np.zeros(image.transpose(axes).shape, np.int32)
    assert dlmt.encrypt(image.transpose(axes), plan, out=out, layout=layout, backend=backend) is out
    np.testing.assert_array_equal(out, dlmt.encrypt(image, plan, backend="reference").transpose(axes))


@pytest.mark.parametrize("width", [1, 7, 16, 31, 33, 64, 65, 129])
@pytest.mark.parametrize(("normalize", "dtype"), [*ALL, ("range", "float16")])
def test_nothing_beside_out_is_written(normalize: str, dtype: str, width: int, target: Any) -> None:
    """The bytes before, between and behind the images keep their value, whatever the vectors' length."""
    plan = plan_of(normalize, dtype, (3, 1, width))
    images = pixels(4, plan.shape)
    want, bounds = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
    for call, source, result in [(dlmt.encrypt, images, want), (dlmt.decrypt, want, images)]:
        memory = np.full((6, 3 * width + 5), 123, result.dtype)
        out = memory[1:5, 2 : 2 + 3 * width].reshape(4, *plan.shape)
        assert np.shares_memory(out, memory)
        extra = {"bounds": bounds} if call is dlmt.decrypt else {}
        with target.active() as backend:
            call(source, plan, out=out, backend=backend, threads=2, **extra)
        out[...] = 123
        assert (memory == 123).all()


def test_in_place_is_the_very_same_array(backend: str) -> None:
    plan, images = plan_of(), pixels()
    want = dlmt.encrypt(images, plan, backend="reference")
    for view in VIEWS:
        if view != "unaligned":
            memory = VIEWS[view](images.copy())
            assert dlmt.encrypt(memory, plan, out=memory, backend=backend) is memory
            np.testing.assert_array_equal(memory, want)
    tensor = torch.from_numpy(images.copy())
    assert dlmt.encrypt(tensor, plan, out=tensor, backend=backend) is tensor
    np.testing.assert_array_equal(tensor.numpy(), want)


def read_only() -> np.ndarray:
    array = np.zeros((5, *SHAPE), np.uint8)
    array.flags.writeable = False
    return array


WRONG_OUTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "dtype": (lambda: np.zeros((5, *SHAPE), np.float32), InputTypeError, "out must have dtype uint8, got float32"),
    "int8": (lambda: np.zeros((5, *SHAPE), np.int8), InputTypeError, "out must have dtype uint8"),
    "kind": (lambda: torch.zeros((5, *SHAPE), dtype=torch.uint8), InputTypeError, "same kind"),
    "list": (lambda: [[0]], InputTypeError, "expected a numpy"),
    "masked": (lambda: np.ma.zeros((5, *SHAPE), np.uint8), InputTypeError, "masked"),
    "count": (lambda: np.zeros((4, *SHAPE), np.uint8), InputShapeError, "they must be equal"),
    "single": (lambda: np.zeros(SHAPE, np.uint8), InputShapeError, "they must be equal"),
    "shape": (lambda: np.zeros((5, C, W, H), np.uint8), InputShapeError, "out of shape"),
    "layout": (lambda: np.zeros((5, H, W, C), np.uint8), InputShapeError, 'layout="NHWC"'),
    "read-only": (read_only, InputTypeError, "cannot be written"),
    "expanded batch": (lambda: as_strided((5, *SHAPE), (0, 48, 6, 1)), InputTypeError, "cannot be written"),
    "expanded channels": (lambda: as_strided((5, *SHAPE), (144, 0, 6, 1)), InputTypeError, "cannot be written"),
    "sliding rows": (lambda: as_strided((5, *SHAPE), (144, 48, 1, 1)), InputTypeError, "cannot be written"),
    "sliding images": (lambda: as_strided((5, *SHAPE), (100, 48, 6, 1)), InputTypeError, "cannot be written"),
    "meta": (lambda: torch.zeros((5, *SHAPE), dtype=torch.uint8, device="meta"), BackendError, "meta"),
}


def as_strided(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.zeros(2000, np.uint8), shape, strides)


@pytest.mark.parametrize("name", WRONG_OUTS)
def test_outs_that_are_refused(name: str) -> None:
    make, error, words = WRONG_OUTS[name]
    images, plan = pixels(), plan_of()
    for call in (dlmt.encrypt, dlmt.decrypt):
        out = make()
        with pytest.raises(error, match=words):
            call(images, plan, out=out, backend="reference")
        if isinstance(out, np.ndarray):
            assert not out.any(), "something was written before the refusal"


@pytest.mark.parametrize("shift", [1, 6, 48, 144, 5 * 144 - 1, -1, -144])
def test_an_out_that_overlaps_the_images_is_refused(shift: int) -> None:
    memory = np.arange(3000, dtype=np.uint32).astype(np.uint8)
    before, at = memory.copy(), 1000
    images = memory[at : at + 720].reshape(5, *SHAPE)
    out = memory[at + shift : at + shift + 720].reshape(5, *SHAPE)
    for given_images, given_out in ((images, out), (torch.from_numpy(images), torch.from_numpy(out))):
        with pytest.raises(InputTypeError, match="overlaps"):
            dlmt.encrypt(given_images, plan_of(), out=given_out, backend="reference")
    assert np.array_equal(memory, before)


def test_an_out_of_the_same_memory_in_another_order_is_refused() -> None:
    images = pixels(5, (3, 6, 6))
    plan = plan_of(shape=(3, 6, 6))
    for out in (images[::-1], images[..., ::-1], images.transpose(0, 1, 3, 2)):
        with pytest.raises(InputTypeError, match="overlaps"):
            dlmt.encrypt(images, plan, out=out, backend="reference")
    wide = np.zeros((5, *SHAPE), np.int32)
    for narrow in (wide.view(np.uint8)[..., ::4], wide.view(np.uint8)[..., 1::4]):
        with pytest.raises(InputTypeError, match="overlaps"):
            dlmt.encrypt(narrow, plan_of("none"), out=wide, backend="reference")


def test_an_out_between_the_images_is_no_overlap(backend: str) -> None:
    memory = np.zeros((10, *SHAPE), np.uint8)
    memory[::2] = pixels()
    dlmt.encrypt(memory[::2], plan_of(), out=memory[1::2], backend=backend)
    np.testing.assert_array_equal(memory[::2], pixels())
    np.testing.assert_array_equal(memory[1::2], dlmt.encrypt(pixels(), plan_of(), backend="reference"))


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "layout": {"layout": "NHCW"},
    "other layout": {"layout": "NHWC"},
    "backend": {"backend": "fast"},
    "cuda": {"backend": "cuda"},
    "threads": {"threads": 0},
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_out_is_untouched_by_a_refused_call(name: str) -> None:
    images, out = pixels(), np.full((5, *SHAPE), 9, np.uint8)
    for call in (dlmt.encrypt, dlmt.decrypt):
        with pytest.raises((ParameterError, BackendError, InputShapeError)) as caught:
            call(images, plan_of(), out=out, **{"backend": "reference", **WRONG_CALLS[name]})
        assert isinstance(caught.value, DlmtError)
        assert (out == 9).all()
        assert np.array_equal(images, pixels())
