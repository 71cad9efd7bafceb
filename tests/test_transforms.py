"""The torchvision transforms: every image of a sample is transformed, or the call raises."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast import plans
from dlmt_fast.errors import DecryptError, InputTypeError, ParameterError, SecretExportError

torch = pytest.importorskip("torch")
tv_tensors = pytest.importorskip("torchvision.tv_tensors")

import PIL.Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import FakeData  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from dlmt_fast.transforms import Decrypt, Encrypt  # noqa: E402

SCHEME = dlmt.DLMT("mat_mmt")
SHAPE = (3, 8, 10)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape or SHAPE, np.uint8))


def picture(mode: str = "RGB") -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels(8, 10, 3).numpy()).convert(mode)


def expected(images: torch.Tensor, key: dlmt.Key, **options: Any) -> torch.Tensor:
    plan = SCHEME.plan(key, tuple(images.shape[-3:]), **{"dtype": "float32", **options})
    return dlmt.encrypt(images, plan, backend="reference")


# --- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 10), (1, 8, 10), (4, 3, 8, 10), (2, 1, 8, 10), (0, 3, 8, 10)])
@pytest.mark.parametrize("wrapped", [False, True], ids=["tensor", "tv_tensor"])
def test_tensors(wrapped: bool, shape: tuple[int, ...], key: dlmt.Key) -> None:
    images = pixels(*shape)
    before = images.clone()
    y = Encrypt(key, SCHEME)(tv_tensors.Image(images) if wrapped else images)
    assert type(y) is (tv_tensors.Image if wrapped else torch.Tensor)
    assert y.dtype == torch.float32
    assert torch.equal(torch.as_tensor(y), expected(images, key))
    assert torch.equal(images, before)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pil_images(mode: str, key: dlmt.Key) -> None:
    image = picture(mode)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.reshape(8, 10, -1).transpose(2, 0, 1).copy())
    y = Encrypt(key, SCHEME)(image)
    assert type(y) is tv_tensors.Image
    assert torch.equal(y.as_subclass(torch.Tensor), expected(tensor, key))
    assert np.array_equal(np.asarray(image), array)


@pytest.mark.parametrize("mode", ["P", "I", "F", "1", "CMYK", "RGBA", "LA", "YCbCr", "HSV"])
@pytest.mark.parametrize("transform_inputs", [None, [0]])
def test_pil_images_in_other_modes_raise(mode: str, transform_inputs: Any, key: dlmt.Key) -> None:
    image = PIL.Image.new(mode, (10, 8))
    with pytest.raises(InputTypeError, match=f"mode L or RGB, got '{mode}'"):
        Encrypt(key, SCHEME, transform_inputs=transform_inputs)((image, 5))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"normalize": "none"}, torch.int32),
        ({"normalize": "none", "dtype": "narrowest"}, torch.uint16),
        ({"dtype": "uint8"}, torch.uint8),
        ({"normalize": "minmax", "dtype": torch.uint8}, torch.uint8),
        ({"normalize": "minmax_channel"}, torch.float32),
        ({"dtype": torch.float16}, torch.float16),
        ({"dtype": "bfloat16", "mean": 0.5, "std": 0.25}, torch.bfloat16),
        ({"mean": (0.4, 0.5, 0.6), "std": torch.tensor(0.25)}, torch.float32),
        ({"mean": np.array(0.5), "std": np.array([0.2, 0.3, 0.4])}, torch.float32),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], dtype: torch.dtype, key: dlmt.Key) -> None:
    images = pixels(4, *SHAPE)
    y = Encrypt(key, SCHEME, **options)(images)
    assert y.dtype == dtype
    default = {"dtype": None} if options.get("normalize") == "none" else {}
    assert torch.equal(y, expected(images, key, **(default | options)))


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "other"},
        {"dtype": "float64"},
        {"normalize": "none", "dtype": "uint8"},
        {"dtype": "uint8", "mean": 0.5},
        {"std": 0.0},
        {"mean": (1, 2), "std": (1, 2, 3)},
        {"dtype": "float16", "std": 1e-6},
    ],
    ids=str,
)
def test_impossible_options_raise_before_an_image_comes(options: dict[str, Any], key: dlmt.Key) -> None:
    for transform in (Encrypt, Decrypt):
        with pytest.raises(ParameterError):
            transform(key, SCHEME, **options)


@pytest.mark.parametrize("options", [{"normalize": "none"}, {"normalize": "none", "dtype": "narrowest"}, {}], ids=str)
def test_decrypt_is_the_inverse(options: dict[str, Any], key: dlmt.Key) -> None:
    images = pixels(4, *SHAPE)
    there, back = Encrypt(key, SCHEME, **options), Decrypt(key, SCHEME, **options)
    assert torch.equal(back(there(images)), images)
    sample = back(there({"image": picture(), "label": 3}))
    assert torch.equal(sample["image"].as_subclass(torch.Tensor), v2.functional.pil_to_tensor(picture()))
    assert sample["label"] == 3


def test_decrypt_refuses_what_it_cannot_do(key: dlmt.Key) -> None:
    for normalize in ("minmax", "minmax_channel"):
        with pytest.raises(ParameterError, match=r"use dlmt_fast\.decrypt"):
            Decrypt(key, SCHEME, normalize)
    y = Encrypt(key, SCHEME, "none")(pixels())
    with pytest.raises(DecryptError):
        Decrypt(dlmt.Key(bytes(32)), SCHEME, "none")(y)
    with pytest.raises(InputTypeError, match="found no image"):
        Decrypt(key, SCHEME)(y)  # int32 where float32 is expected
    with pytest.raises(InputTypeError, match="float32, got uint8"):
        Decrypt(key, SCHEME)(tv_tensors.Image(pixels()))


def test_plans_of_many_sizes_do_not_pile_up(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = Encrypt(key, SCHEME)
    monkeypatch.setattr(plans, "MOST_VALUES", 3000)
    for _ in range(2):
        for height in (*range(1, 40), 400):
            image = pixels(3, height, 10)
            assert torch.equal(transform(image), expected(image, key))
            assert sum(3 * h * w for _, h, w in transform._plans._made) <= max(3000, image.numel())
            assert (3, height, 10) in transform._plans._made
    monkeypatch.undo()
    for height in range(1, 40):
        transform(pixels(3, height, 10))
    assert len(transform._plans._made) == 40


# --- samples ---------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "image label")


def test_everything_else_passes_as_it_is(key: dlmt.Key) -> None:
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 3, 4]]), format="XYXY", canvas_size=(8, 10))
    others = {
        "boxes": boxes,
        "mask": tv_tensors.Mask(pixels(1, 8, 10)),
        "label": torch.tensor(3),
        "labels": torch.arange(4),
        "soft": torch.rand(3, 4, 5),
        "flat": pixels(8, 10),
        "two channels": pixels(2, 8, 10),
        "name": "a.png",
        "number": 5,
        "none": None,
        "array": np.zeros((3, 4)),
    }
    sample = {"image": pixels(), **others}
    done = Encrypt(key, SCHEME)(sample)
    assert torch.equal(done["image"], expected(sample["image"], key))
    assert list(done) == list(sample)
    for name, value in others.items():
        assert done[name] is value, name


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, b],
        lambda a, b: Pair(a, b),
        lambda a, b: OrderedDict(first=a, second=b),
        lambda a, b: {"deep": [{"er": (a, [b])}]},
    ],
    ids=["tuple", "list", "namedtuple", "ordered", "nested"],
)
def test_structures_come_back(make: Callable[[Any, Any], Any], key: dlmt.Key) -> None:
    sample = make(pixels(), 7)
    done = Encrypt(key, SCHEME)(sample)
    want = make(expected(pixels(), key), 7)
    assert type(done) is type(sample)
    assert repr(done) == repr(want)


def test_every_image_of_the_sample_is_transformed(key: dlmt.Key) -> None:
    """torchvision's own transforms take the first pure tensor only, and none beside a tv_tensor."""
    a, b, c = pixels(seed=1), pixels(2, 1, 5, 6, seed=2), pixels(seed=3)
    done = Encrypt(key, SCHEME)(a, {"again": b, "wrapped": tv_tensors.Image(c)}, [picture("L")], 5)
    assert torch.equal(done[0], expected(a, key))
    assert torch.equal(done[1]["again"], expected(b, key))
    assert torch.equal(done[1]["wrapped"].as_subclass(torch.Tensor), expected(c, key))
    assert torch.equal(done[2][0].as_subclass(torch.Tensor), expected(v2.functional.pil_to_tensor(picture("L")), key))
    assert done[3] == 5


NOTHING = {
    "label": 5,
    "empty": {},
    "mask": tv_tensors.Mask(torch.zeros(1, 8, 10, dtype=torch.uint8)),
    "float image": torch.rand(3, 8, 10),
    "int64 image": torch.zeros(3, 8, 10, dtype=torch.int64),
    "no channel": torch.zeros(8, 10, dtype=torch.uint8),
    "five axes": torch.zeros(1, 2, 3, 8, 10, dtype=torch.uint8),
    "float array": np.zeros((8, 10, 3), np.float32),
    "bytes": b"text",
    "object": object(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_sample_without_an_image_raises(name: str, key: dlmt.Key) -> None:
    for sample in (NOTHING[name], (NOTHING[name], 3)):
        with pytest.raises(InputTypeError, match="found no image in the sample"):
            Encrypt(key, SCHEME)(sample)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    picture().save(file, kind)
    return file.getvalue()


HIDDEN = {
    "channels last": (lambda: pixels(8, 10, 3), "channels last"),
    "gray, channels last": (lambda: pixels(2, 8, 10, 1), "channels last"),
    "array": (lambda: pixels(8, 10, 3).numpy(), r"NumPy image, uint8 \(8, 10, 3\).*ToImage"),
    "array, channels first": (lambda: pixels(4, 1, 8, 10).numpy(), "NumPy image"),
    **{kind: (lambda kind=kind: encoded(kind), "encoded image") for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP")},
}


@pytest.mark.parametrize("name", HIDDEN)
def test_an_image_in_a_form_that_would_pass_as_it_is_raises(name: str, key: dlmt.Key) -> None:
    """Beside an image that is transformed nobody would see it."""
    make, words = HIDDEN[name]
    for sample in (make(), {"image": pixels(), "again": [make()]}):
        with pytest.raises(InputTypeError, match=words):
            Encrypt(key, SCHEME)(sample)
    done = Encrypt(key, SCHEME, transform_inputs=[0])((pixels(), held := make()))
    assert done[1] is held


def test_subclasses_of_tensor_are_images_too(key: dlmt.Key) -> None:
    class Own(torch.Tensor):
        pass

    for image in (pixels().as_subclass(Own), torch.nn.Parameter(pixels(), requires_grad=False)):
        done = Encrypt(key, SCHEME)((image, pixels(seed=1)))
        assert torch.equal(done[0].as_subclass(torch.Tensor), expected(pixels(), key))
        assert torch.equal(done[1], expected(pixels(seed=1), key))


def test_image_types_that_are_not_known_raise(key: dlmt.Key) -> None:
    with pytest.raises(InputTypeError, match="uint8, got float32"):
        Encrypt(key, SCHEME)(tv_tensors.Image(torch.rand(3, 8, 10)), pixels())
    with pytest.raises(InputTypeError, match="3 or 4 axes"):
        Encrypt(key, SCHEME)(tv_tensors.Image(pixels(1, 2, 3, 8, 10)))
    with pytest.raises(InputTypeError, match="Video"):
        Encrypt(key, SCHEME)({"image": pixels(), "clip": tv_tensors.Video(pixels(4, 3, 8, 10))})


def test_no_sample_raises(key: dlmt.Key) -> None:
    with pytest.raises(InputTypeError, match="no image"):
        Encrypt(key, SCHEME)()


# --- transform_inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice", [[0, 2], (2, 0), lambda leaves: [leaf.ndim == 3 for leaf in leaves]], ids=["list", "tuple", "call"]
)
def test_transform_inputs_chooses(choice: Any, key: dlmt.Key) -> None:
    sample = (pixels(4, 8, 10), pixels(2, 3, 8, 10), pixels())
    done = Encrypt(key, SCHEME, transform_inputs=choice)(sample)
    assert torch.equal(done[0], expected(sample[0], key))
    assert done[1] is sample[1]
    assert torch.equal(done[2], expected(sample[2], key))


@pytest.mark.parametrize("choice", [[-1], [True, False], ["0"], [0.0], "01", 0, [None]], ids=repr)
def test_transform_inputs_that_mean_nothing(choice: Any, key: dlmt.Key) -> None:
    """Else -1 would silently leave the last image as it is."""
    with pytest.raises(ParameterError, match="transform_inputs"):
        Encrypt(key, SCHEME, transform_inputs=choice)


def test_transform_inputs_that_do_not_fit_the_sample(key: dlmt.Key) -> None:
    for choice, words in [([0, 2], "index 2"), (lambda leaves: [True], "1 answers for 2 inputs")]:
        with pytest.raises(ParameterError, match=words):
            Encrypt(key, SCHEME, transform_inputs=choice)((pixels(), pixels()))
    with pytest.raises(InputTypeError, match="found no image"):
        Encrypt(key, SCHEME, transform_inputs=[])((pixels(), 5))
    with pytest.raises(InputTypeError, match="got int"):
        Encrypt(key, SCHEME, transform_inputs=[1])((pixels(), 5))


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [Encrypt, Decrypt])
def test_texts_show_the_fingerprint_alone(transform: Any, key: dlmt.Key, secret: bytes) -> None:
    module = transform(key, SCHEME, mean=0.5)
    if transform is Encrypt:
        module(pixels())
    for text in (repr(module), str(v2.Compose([module])), repr(vars(module))):
        assert key.fingerprint in text
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
        assert "tensor(" not in text
    assert repr(module).startswith(f"{transform.__name__}(key='{key.fingerprint}', DLMT(mode='mat_mmt'")


def test_no_state_and_no_parameters(key: dlmt.Key) -> None:
    module = Encrypt(key, SCHEME)
    module(pixels())
    assert module.state_dict() == {}
    assert not list(module.parameters())
    assert not list(module.buffers())


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: v2.Compose([t]), lambda t: {"t": t}], ids=["bare", "compose", "dict"]
)
def test_pickling_is_refused_outside_the_block(wrap: Callable[[Any], Any], key: dlmt.Key) -> None:
    held = wrap(Encrypt(key, SCHEME))
    for leave in (pickle.dumps, lambda held: torch.save(held, io.BytesIO())):
        with pytest.raises(SecretExportError, match="allow_export"):
            leave(held)
    with dlmt.keys.allow_export():
        data = pickle.dumps(held)
    assert pickle.loads(data) is not None


def test_a_pickle_transforms_alike(key: dlmt.Key) -> None:
    module = Encrypt(key, SCHEME, "minmax", mean=0.5, transform_inputs=[1])
    sample = (5, pixels())
    want = module(sample)[1]
    with dlmt.keys.allow_export():
        data = pickle.dumps(module)
    again = pickle.loads(data)
    assert torch.equal(again(sample)[1], want)
    assert repr(again) == repr(module)
    big = Encrypt(key, SCHEME)
    big(pixels(3, 224, 224))
    with dlmt.keys.allow_export():
        assert len(pickle.dumps(big)) < 10_000, "the coefficients went along"


def test_copies_share_the_object(key: dlmt.Key) -> None:
    module = Encrypt(key, SCHEME)
    assert copy.copy(module) is module
    assert copy.deepcopy(v2.Compose([module])).transforms[0] is module


# --- within torchvision and DataLoader -------------------------------------------------------------------------------


def test_compose(key: dlmt.Key) -> None:
    crop = v2.RandomCrop((4, 5))
    transform = v2.Compose([v2.ToImage(), crop, v2.RandomHorizontalFlip(), Encrypt(key, SCHEME), v2.ToPureTensor()])
    plain = v2.Compose([v2.ToImage(), crop, v2.RandomHorizontalFlip(), v2.ToPureTensor()])
    for sample in (picture(), (picture(), 3), {"image": picture("L"), "label": 3}):
        torch.manual_seed(5)
        done = transform(sample)
        torch.manual_seed(5)
        want = plain(sample)
        leaves = [v["image"] if isinstance(v, dict) else v[0] if isinstance(v, tuple) else v for v in (done, want)]
        assert type(leaves[0]) is torch.Tensor
        assert torch.equal(leaves[0], expected(leaves[1], key))


@pytest.mark.parametrize("mode", ["mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"])
@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel"])
def test_the_fused_form_replaces_todtype_and_normalize(normalize: str, mode: str, key: dlmt.Key) -> None:
    """They normalise what was rounded to uint8 before, so they are off by up to half a gray level; the fused form is
    not, and is the reference's to the bit."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scheme = dlmt.DLMT(mode, rise_v=200) if mode == "rise_mmt" else dlmt.DLMT(mode)
    images = pixels(16, 3, 24, 20)
    fused = v2.Compose([Encrypt(key, scheme, normalize, "float32", mean, std)])(images)
    steps = [Encrypt(key, scheme, normalize, "uint8"), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    apart = v2.Compose(steps)(images)
    plan = scheme.plan(key, (3, 24, 20), normalize, "float32", mean, std)
    torch.testing.assert_close(fused, dlmt.encrypt(images, plan, backend="reference"), rtol=0, atol=0)
    worst = (fused - apart).abs().amax((0, 2, 3))
    half = 0.5 / (255 * torch.tensor(std))
    assert (worst <= half + 1e-6).all(), worst / half
    assert (worst > 0.9 * half).all(), "and the bound is reached"


# --- as others test their own transforms -----------------------------------------------------------------------------


def boxes(form: str, count: int) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(torch.arange(4 * count).reshape(count, 4), format=form, canvas_size=(8, 10))


SAMPLE = {
    "tensor": pixels(seed=1),
    "image": tv_tensors.Image(pixels(seed=2)),
    "batch": tv_tensors.Image(pixels(4, 1, 8, 10, seed=3)),
    "pil": picture(),
    "xyxy": boxes("XYXY", 3),
    "xywh": boxes("XYWH", 4),
    "cxcywh": boxes("CXCYWH", 5),
    "degenerate": tv_tensors.BoundingBoxes([[0, 0, 0, 0], [2, 2, 1, 1]], format="XYXY", canvas_size=(8, 10)),
    "detection mask": tv_tensors.Mask(pixels(5, 8, 10) > 127),
    "segmentation mask": tv_tensors.Mask(pixels(8, 10)),
    "int": 0,
    "float": 0.0,
    "bool": True,
    "none": None,
    "str": "str",
    "path": Path.cwd(),
    "object": object(),
    "empty tensor": torch.empty(5),
    "empty array": np.empty(5),
}
IMAGES = ("tensor", "image", "batch", "pil")


def pickled(transform: Any) -> Any:
    with dlmt.keys.allow_export():
        return pickle.loads(pickle.dumps(transform))


@pytest.mark.parametrize("container", [dict, list, tuple])
@pytest.mark.parametrize("first", IMAGES)
@pytest.mark.parametrize("again", [lambda t: t, pickled, copy.deepcopy], ids=["as made", "pickled", "copied"])
def test_as_torchvision_tests_its_transforms(first: str, container: Any, again: Any, key: dlmt.Key) -> None:
    """test_transforms_v2.py, TestSmoke.test_common: samples of everything, in every container, before and after a
    pickle; the structure is kept, what is no image comes back as the very object, what is one in its own type."""
    named = {first: SAMPLE[first]} | SAMPLE
    sample = named if container is dict else container(named.values())
    before = copy.deepcopy(pixels_of(list(named.values())))
    done = again(Encrypt(key, SCHEME))(sample)
    assert type(done) is container
    if container is dict:
        assert list(done) == list(named)
    leaves = list(done.values() if container is dict else done)
    for (name, given), got in zip(named.items(), leaves, strict=True):
        if name not in IMAGES:
            assert got is given, name
            continue
        assert type(got) is (tv_tensors.Image if name == "pil" else type(given))
        tensor = v2.functional.pil_to_tensor(given) if name == "pil" else given.as_subclass(torch.Tensor)
        torch.testing.assert_close(got.as_subclass(torch.Tensor), expected(tensor, key), rtol=0, atol=0)
    assert all(map(torch.equal, pixels_of(list(named.values())), before)), "inputs are left as they were"


def pixels_of(leaves: list[Any]) -> list[torch.Tensor]:
    return [leaf.as_subclass(torch.Tensor) for leaf in leaves if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("names", list(itertools.permutations([*IMAGES, "tensor"], 3)), ids=",".join)
def test_no_heuristic_for_pure_tensors(names: tuple[str, ...], key: dlmt.Key) -> None:
    """test_transforms_v2.py, test_pure_tensor_heuristic: theirs leaves pure tensors beside other images; ours none."""
    sample = tuple(SAMPLE[name] for name in names)
    for given, got in zip(sample, Encrypt(key, SCHEME)(sample), strict=True):
        assert got is not given
        assert got.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"normalize": "minmax"}, {"dtype": "uint8"}, {"normalize": "none"}], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_batch_is_its_images(memory: Any, options: dict[str, Any], key: dlmt.Key) -> None:
    """As torchvision's check_kernel: a batch gives what its images give one by one, whatever its memory format."""
    images = pixels(5, *SHAPE).contiguous(memory_format=memory)
    transform = Encrypt(key, SCHEME, **options)
    together = transform(images)
    assert together.is_contiguous(memory_format=memory)
    torch.testing.assert_close(together, torch.stack([transform(image) for image in images]), rtol=0, atol=0)
    torch.testing.assert_close(together[:0], transform(images[:0]), rtol=0, atol=0)


def test_the_module_call_and_eval_mode(key: dlmt.Key) -> None:
    module = torch.nn.Sequential(Encrypt(key, SCHEME), torch.nn.Flatten(0)).eval()
    assert torch.equal(module(pixels()), expected(pixels(), key).flatten())


@pytest.fixture(scope="module")
def loaded() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return load(0, None)


def load(workers: int, context: str | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All batches of a small data set of PIL images that are transformed where they are loaded."""
    transform = v2.Compose([v2.ToImage(), Encrypt(dlmt.Key(bytes(range(32))), SCHEME), v2.ToPureTensor()])
    data = FakeData(size=11, image_size=(3, 16, 12), num_classes=4, transform=transform)
    loader = DataLoader(data, batch_size=4, num_workers=workers, multiprocessing_context=context)
    return [(images.clone(), torch.as_tensor(labels)) for images, labels in loader]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_load_the_same(context: str, loaded: list[Any]) -> None:
    got = load(2, context)
    assert [len(images) for images, _ in got] == [4, 4, 3]
    for (images, labels), (want_images, want_labels) in zip(got, loaded, strict=True):
        assert torch.equal(images, want_images)
        assert torch.equal(labels, want_labels)


def test_what_workers_load_is_what_encrypt_gives(loaded: list[Any], key: dlmt.Key) -> None:
    plain = FakeData(size=11, image_size=(3, 16, 12), num_classes=4, transform=v2.PILToTensor())
    images = torch.stack([plain[i][0] for i in range(11)])
    assert torch.equal(torch.cat([images for images, _ in loaded]), expected(images, key))
