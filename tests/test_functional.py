"""`encrypt` and `decrypt`: which kinds, layouts and options they take, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import BackendError, DecryptError, InputShapeError, InputTypeError, ParameterError

torch = pytest.importorskip("torch")

C, H, W = SHAPE = (3, 4, 6)
SECRET = bytes(range(32))
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}
ANY_LAYOUT = ("NCHW", "NHWC", "CHW", "HWC")
ALL = [("none", "int32"), ("none", "narrowest"), ("range", "uint8"), ("minmax", "uint8"), ("minmax_channel", "float32")]


def plan_of(normalize: str = "range", dtype: str | None = None, shape: tuple[int, ...] = SHAPE) -> dlmt.Plan:
    return dlmt.DLMT("mat_mmt").plan(dlmt.Key(SECRET), shape, normalize, dtype)


def pixels(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def expected(images: np.ndarray, plan: dlmt.Plan) -> np.ndarray:
    """The reference on a contiguous copy in NCHW."""
    return dlmt.encrypt(np.ascontiguousarray(images), plan, backend="reference")


# --- kinds and layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "single"), [("NCHW", False), ("NHWC", False), *((name, True) for name in ANY_LAYOUT)]
)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("normalize", "dtype"), ALL)
def test_every_kind_and_layout(normalize: str, dtype: str, kind: str, layout: str, single: bool, backend: str) -> None:
    """Kind, axes and dtype of the input and the plan come back, and the way back gives the images."""
    plan, images = plan_of(normalize, dtype), pixels()
    axes = LAYOUTS["N" + layout[-3:]]
    given_images: Any = np.ascontiguousarray(images.transpose(axes))
    want = expected(images, plan).transpose(axes)
    if single:
        given_images, want = given_images[2], want[2]
    if kind == "torch":
        given_images = torch.from_numpy(given_images)
    y, bounds = dlmt.encrypt(given_images, plan, layout=layout, backend=backend, return_bounds=True)
    x = dlmt.decrypt(y, plan, bounds, layout=layout, backend=backend)
    assert type(y) is type(x) is type(bounds) is (np.ndarray if kind == "numpy" else torch.Tensor)
    assert tuple(y.shape) == tuple(given_images.shape)
    assert str(y.dtype).removeprefix("torch.") == plan.dtype
    np.testing.assert_array_equal(np.asarray(y), want)
    assert np.abs(np.asarray(x).astype(int) - np.asarray(given_images)).max() <= plan.worst_error


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("normalize", "dtype"), [*ALL, ("range", "float16")])
def test_no_images(normalize: str, dtype: str, kind: str, layout: str, backend: str) -> None:
    plan = plan_of(normalize, dtype)
    images: Any = np.zeros((0, C, H, W), np.uint8).transpose(LAYOUTS[layout])
    images = torch.from_numpy(images) if kind == "torch" else images
    y, bounds = dlmt.encrypt(images, plan, layout=layout, backend=backend, return_bounds=True)
    assert tuple(y.shape) == tuple(images.shape)
    assert tuple(bounds.shape) == ((0, C, 2) if normalize == "minmax_channel" else (0, 2))
    assert tuple(dlmt.decrypt(y, plan, bounds, layout=layout, backend=backend).shape) == tuple(images.shape)


def test_a_batch_is_its_images(backend: str) -> None:
    for normalize, dtype in ALL:
        plan, images = plan_of(normalize, dtype), pixels(4)
        one_by_one = [dlmt.encrypt(image, plan, backend=backend) for image in images]
        np.testing.assert_array_equal(np.stack(one_by_one), dlmt.encrypt(images, plan, backend=backend))


class Mine(np.ndarray):
    """A subclass, as libraries make them."""


def test_subclasses_of_arrays_and_tensors(backend: str, tmp_path: Path) -> None:
    plan, images = plan_of(), pixels()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    for array in (mapped, images.view(Mine)):
        y = dlmt.encrypt(array, plan, backend=backend)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected(images, plan))
    parameter = torch.nn.Parameter(torch.from_numpy(images), requires_grad=False)
    np.testing.assert_array_equal(dlmt.encrypt(parameter, plan, backend=backend).numpy(), expected(images, plan))


def test_a_read_only_input_will_do(backend: str) -> None:
    plan, images = plan_of(), pixels()
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(dlmt.encrypt(images, plan, backend=backend), expected(images, plan))


OTHER_KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: pixels(1).tolist(),
    "bytes": lambda: pixels(1).tobytes(),
    "none": lambda: None,
    "number": lambda: np.uint8(5),
    "memoryview": lambda: memoryview(pixels(1)),
    "pil": lambda: pytest.importorskip("PIL.Image").fromarray(pixels(1)[0].transpose(1, 2, 0).copy()),
    "masked": lambda: np.ma.masked_array(pixels(1), mask=False),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(
        InputTypeError, match="masked" if name == "masked" else "expected a numpy.ndarray or a torch.Tensor"
    ):
        dlmt.encrypt(OTHER_KINDS[name](), plan_of(), backend="reference")


@pytest.mark.parametrize("dtype", ["int8", "bool", "uint16", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_other_dtypes_are_refused(kind: str, dtype: str) -> None:
    images: Any = pixels().astype(dtype)
    images = torch.from_numpy(images) if kind == "torch" else images
    with pytest.raises(InputTypeError, match=f"images must have dtype uint8, got {dtype}; nothing is cast silently"):
        dlmt.encrypt(images, plan_of(), backend="reference")


@pytest.mark.parametrize("plan", ["range", None, dlmt.DLMT(), {"shape": SHAPE}], ids=lambda p: type(p).__name__)
def test_what_is_no_plan(plan: Any) -> None:
    for call in (dlmt.encrypt, dlmt.decrypt):
        with pytest.raises(InputTypeError, match=r"expected a plan from scheme\.plan"):
            call(pixels(), plan)


def test_tensors_that_are_refused() -> None:
    plan, tensor = plan_of(), torch.from_numpy(pixels())
    with pytest.raises(BackendError, match="on the device meta"):
        dlmt.encrypt(tensor.to("meta"), plan)
    with pytest.raises(InputTypeError, match="dense"):
        dlmt.encrypt(tensor.to_sparse(), plan)
    floats = plan_of("range", "float32")
    y = dlmt.encrypt(tensor, floats, backend="reference").requires_grad_()
    with pytest.raises(InputTypeError, match="requires grad"):
        dlmt.decrypt(y, floats, backend="reference")
    with pytest.raises(InputTypeError, match="bfloat16"):
        dlmt.encrypt(pixels(), plan_of("range", "bfloat16"), backend="reference")


MENDS = [
    (SHAPE, (5, H, W, C), "NCHW", r'layout="NHWC"'),
    (SHAPE, (5, C, H, W), "NHWC", r'layout="NCHW"'),
    (SHAPE, (H, W, C), "CHW", r'layout="HWC"'),
    (SHAPE, (5, C, H, W), "CHW", r'layout="NCHW"'),
    (SHAPE, (5, H, W, C), "HWC", r'layout="NHWC"'),
    (SHAPE, (5, C, H + 1, W), "NCHW", "make a plan for this size"),
    ((1, 28, 28), (600, 28, 28), "NCHW", r"images\[:, None\]"),
    ((1, 28, 28), (600, 28, 28), "NHWC", r"images\[\.\.\., None\]"),
    ((1, 28, 28), (28, 28), "NCHW", r"images\[None\]"),
]
OTHERS = [(), (5,), (H, W), (5, 5, C, H, W), (C * H * W,), (5, C, H * W), (5, 1, H, W), (5, C, W, H)]


@pytest.mark.parametrize(
    ("plan_shape", "shape", "layout", "mend"), [*MENDS, *((SHAPE, s, "NCHW", "plan") for s in OTHERS)]
)
def test_shapes_that_do_not_fit(plan_shape: Any, shape: Any, layout: str, mend: str) -> None:
    for images in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
        with pytest.raises(InputShapeError, match=mend):
            dlmt.encrypt(images, plan_of(shape=plan_shape), layout=layout, backend="reference")


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["", "nchw", "NCWH", "HCW", None, "NCHWN"], ids=repr)
def test_unknown_layouts(layout: Any) -> None:
    with pytest.raises(ParameterError, match="expected one of NCHW, NHWC, CHW, HWC"):
        dlmt.encrypt(pixels(), plan_of(), layout=layout)


@pytest.mark.parametrize("name", ["", "Native", "numba_cpu", "torch", "gpu"])
def test_unknown_backends(name: str) -> None:
    with pytest.raises(ParameterError, match="expected auto, reference, native, numba, cuda"):
        dlmt.encrypt(pixels(), plan_of(), backend=name)


@pytest.mark.parametrize("threads", [0, -1, 1.0, 2.5, True, False, "2", [1]], ids=repr)
def test_threads_that_are_none(threads: Any) -> None:
    for call in (dlmt.encrypt, dlmt.decrypt):
        with pytest.raises(ParameterError, match="at least 1, or None"):
            call(pixels(), plan_of(), backend="reference", threads=threads)


@pytest.mark.parametrize("threads", [None, 1, 2, 7, 1000])
def test_threads_do_not_change_the_result(threads: int | None, target: Any) -> None:
    plan, images = plan_of("minmax_channel", "float32"), pixels(37)
    with target.active() as backend:
        y, bounds = dlmt.encrypt(images, plan, backend=backend, threads=threads, return_bounds=True)
        x = dlmt.decrypt(y, plan, bounds, backend=backend, threads=threads)
    np.testing.assert_array_equal(y, expected(images, plan))
    np.testing.assert_array_equal(x, images)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("normalize", ["none", "range", "minmax", "minmax_channel"])
def test_bounds(normalize: str, kind: str, backend: str) -> None:
    """int32, lo and hi of v over what the normalisation looks at; without N for one image."""
    plan, images = plan_of(normalize), pixels(3)
    m, b = dlmt.DLMT("mat_mmt").matrices(dlmt.Key(SECRET), SHAPE)
    v = images * m.astype(np.int64) + b
    want = np.full((3, 2), [plan.lo, plan.hi])
    if normalize.startswith("minmax"):
        axes = (1, 2, 3) if normalize == "minmax" else (2, 3)
        want = np.stack([v.min(axes), v.max(axes)], axis=-1)
    source: Any = torch.from_numpy(images) if kind == "torch" else images
    for given_images, expected_bounds in ((source, want), (source[1], want[1])):
        bounds = dlmt.encrypt(given_images, plan, backend=backend, return_bounds=True)[1]
        assert str(bounds.dtype).removeprefix("torch.") == "int32"
        np.testing.assert_array_equal(np.asarray(bounds), expected_bounds)


def bad_bounds(plan: dlmt.Plan, good: np.ndarray) -> list[tuple[Any, type[Exception], str]]:
    below, above, swapped = good.copy(), good.copy(), good[..., ::-1].copy()
    below[..., 0], above[..., 1] = plan.lo - 1, plan.hi + 1
    return [
        (good.astype(np.int64), InputTypeError, "int32"),
        (good.astype(np.float32), InputTypeError, "int32"),
        (torch.from_numpy(good).to(torch.bfloat16), InputTypeError, "int32"),
        (torch.from_numpy(good).to("meta"), InputTypeError, "int32"),
        (good.tolist(), InputTypeError, "int32"),
        ((plan.lo, plan.hi), InputTypeError, "int32"),
        (good[:-1], InputShapeError, "must have shape"),
        (good[0], InputShapeError, "must have shape"),
        (good[..., :1], InputShapeError, "must have shape"),
        (good[None], InputShapeError, "must have shape"),
        (below, DecryptError, "wrong key or damage"),
        (above, DecryptError, "wrong key or damage"),
        (swapped, DecryptError, "wrong key or damage"),
    ]


@pytest.mark.parametrize("number", range(13))
@pytest.mark.parametrize("normalize", ["none", "range", "minmax", "minmax_channel"])
def test_bounds_that_do_not_fit(normalize: str, number: int) -> None:
    plan, images = plan_of(normalize), pixels(5)
    y, good = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
    out = np.full_like(images, 77)
    cases = bad_bounds(plan, good)
    assert len(cases) == 13
    bounds, error, words = cases[number]
    with pytest.raises(error, match=words):
        dlmt.decrypt(y, plan, bounds, out=out, backend="reference")
    assert (out == 77).all()


def test_bounds_that_are_missing_or_of_other_images() -> None:
    for normalize in ("minmax", "minmax_channel"):
        plan = plan_of(normalize)
        with pytest.raises(ParameterError, match="return_bounds=True"):
            dlmt.decrypt(dlmt.encrypt(pixels(), plan, backend="reference"), plan, backend="reference")
    plan = plan_of("range")
    y, bounds = dlmt.encrypt(pixels(), plan, backend="reference", return_bounds=True)
    bounds[3, 1] -= 1
    with pytest.raises(DecryptError, match="every pair of bounds is"):
        dlmt.decrypt(y, plan, bounds, backend="reference")


def test_bounds_of_the_other_kind_or_strided_will_do(backend: str) -> None:
    plan, images = plan_of("minmax_channel", "float32"), pixels()
    y, bounds = dlmt.encrypt(images, plan, backend=backend, return_bounds=True)
    for other in (torch.from_numpy(bounds), np.asfortranarray(bounds), np.repeat(bounds, 2, axis=0)[::2]):
        np.testing.assert_array_equal(dlmt.decrypt(y, plan, other, backend=backend), images)
