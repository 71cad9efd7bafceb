"""Other libraries with the transform, by the lines that the README gives, each with the real library.

Right bits, and nothing passes untransformed: missing images and images in another form raise.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for news

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import BackendError, InputTypeError, ParameterError, SecretExportError

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch.utils.data import DataLoader  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from dlmt_fast.transforms import Encrypt  # noqa: E402

SCHEME = dlmt.DLMT("mat_mmt")
README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
LINES = dict(re.findall(r"^\| ([^|]+) \| `([^`|]+)` \|$", README, re.MULTILINE))
NAMES = ("Hugging Face datasets", "WebDataset", "Albumentations", "kornia", "after the loader")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning"),  # WebDataset's own
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_the_readme_has_a_line_for_each() -> None:
    assert set(NAMES) <= set(LINES)


def line(name: str, **names: Any) -> dict[str, Any]:
    """What the README's line makes of these names."""
    exec(LINES[name], names)
    return names


def pixels(count: int = 6, shape: tuple[int, ...] = (3, 8, 10)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8))


def expected(images: torch.Tensor, key: dlmt.Key, dtype: str = "float32") -> torch.Tensor:
    return dlmt.encrypt(images, SCHEME.plan(key, tuple(images.shape[-3:]), dtype=dtype), backend="reference")


def pictures(images: torch.Tensor) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()) for image in images]


def plain(image: torch.Tensor) -> torch.Tensor:
    assert isinstance(image, torch.Tensor)
    return image.as_subclass(torch.Tensor)


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The library, kept from the network and from the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return pytest.importorskip("datasets")


def table(hub: Any, values: Any, decode: bool = True) -> Any:
    features = hub.Features({"image": hub.Image(decode=decode), "label": hub.Value("int64")})
    return hub.Dataset.from_dict({"image": values, "label": list(range(len(values)))}, features=features)


@pytest.mark.parametrize("shape", [(3, 8, 10), (1, 5, 7)])
@pytest.mark.parametrize("workers", [0, 2])
def test_hugging_face_datasets(hub: Any, workers: int, shape: tuple[int, ...], key: dlmt.Key) -> None:
    images = pixels(shape=shape)
    dataset = table(hub, pictures(images))
    line("Hugging Face datasets", dataset=dataset, transform=Encrypt(key, SCHEME))
    want = expected(images, key)
    assert torch.equal(plain(dataset[4]["image"]), want[4])
    assert torch.equal(torch.stack([plain(image) for image in dataset[1:3]["image"]]), want[1:3])
    context = "fork" if workers else None
    loaded = list(DataLoader(dataset, 4, num_workers=workers, multiprocessing_context=context))
    assert torch.equal(torch.cat([batch["image"] for batch in loaded]), want)
    assert torch.cat([batch["label"] for batch in loaded]).tolist() == list(range(6))


def test_hugging_face_datasets_let_nothing_pass(hub: Any, key: dlmt.Key, secret: bytes, caplog: Any) -> None:
    images = pictures(pixels(3))
    for dataset, words in [
        (table(hub, images, decode=False), "encoded image"),
        (table(hub, [image.convert("P") for image in images]), "mode L or RGB, got 'P'"),
        (table(hub, [None, None, None]), "found no image"),
        (table(hub, images).remove_columns("image"), "found no image"),
    ]:
        dataset.set_transform(Encrypt(key, SCHEME))
        with pytest.raises(InputTypeError, match=words):
            dataset[0]
    with pytest.raises(InputTypeError, match="found no image"):  # map gives a mapping of its own, and writes to disk
        table(hub, images).map(Encrypt(key, SCHEME), batched=True)
    with pytest.raises(SecretExportError):
        pickle.dumps(dataset)
    assert secret.hex() not in caplog.text


def test_a_stream_of_hugging_face_datasets(hub: Any, key: dlmt.Key) -> None:
    images = pixels(3)
    stream = table(hub, pictures(images)).to_iterable_dataset().map(Encrypt(key, SCHEME))
    assert torch.equal(torch.stack([plain(row["image"]) for row in stream]), expected(images, key))


# --- WebDataset ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> str:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i, image in enumerate(pictures(pixels())):
            writer.write({"__key__": f"{i:03}", "png": image, "cls": i})
    return str(tmp_path / "a.tar")


@pytest.mark.parametrize("workers", [0, 1])
def test_webdataset(workers: int, shards: str, key: dlmt.Key) -> None:
    import webdataset

    dataset = line("WebDataset", webdataset=webdataset, shards=shards, transform=Encrypt(key, SCHEME))["dataset"]
    context = "fork" if workers else None
    samples = list(DataLoader(dataset, None, num_workers=workers, multiprocessing_context=context))
    assert torch.equal(torch.stack([plain(sample["png"]) for sample in samples]), expected(pixels(), key))
    assert [sample["cls"] for sample in samples] == list(range(6))
    tuples = webdataset.WebDataset(shards, shardshuffle=False).decode("torchrgb8").to_tuple("png", "cls")
    images, labels = zip(*tuples.map(Encrypt(key, SCHEME)), strict=True)
    assert torch.equal(torch.stack(images), expected(pixels(), key))
    assert list(labels) == list(range(6))


@pytest.mark.parametrize(
    ("decoder", "words"),
    [(None, "encoded image"), ("rgb8", "NumPy image"), ("torchrgb", "found no image"), ("rgb", "found no image")],
)
def test_webdataset_lets_nothing_pass(decoder: str | None, words: str, shards: str, key: dlmt.Key) -> None:
    import webdataset

    dataset = webdataset.WebDataset(shards, shardshuffle=False)
    dataset = dataset.decode(decoder) if decoder else dataset
    with pytest.raises(InputTypeError, match=words):
        list(dataset.map(Encrypt(key, SCHEME)))
    with pytest.raises(InputTypeError, match="found no image"):
        list(dataset.to_tuple("cls").map(Encrypt(key, SCHEME)))


# --- kornia, and the transform as a module after the loader ----------------------------------------------------------


def test_kornia(key: dlmt.Key) -> None:
    """kornia works on floats in 0..1; what it gives is made uint8 again before the transform."""
    K = pytest.importorskip("kornia.augmentation")
    images = pixels()
    names = {"K": K, "torch": torch, "v2": v2, "transform": Encrypt(key, SCHEME)}
    pipeline = line("kornia", **names)["pipeline"]
    floats = v2.functional.to_dtype(images, torch.float32, scale=True)
    torch.manual_seed(3)
    y = pipeline(floats)
    torch.manual_seed(3)
    flipped = (K.RandomHorizontalFlip()(floats) * 255).round().to(torch.uint8)
    assert not torch.equal(flipped, images)
    assert torch.equal(y, expected(flipped, key))
    with pytest.raises(InputTypeError, match="found no image"):
        torch.nn.Sequential(K.RandomHorizontalFlip(), Encrypt(key, SCHEME))(floats)
    inside = K.ImageSequential(K.RandomHorizontalFlip(p=0.0), Encrypt(key, SCHEME))
    with pytest.raises(InputTypeError, match="found no image"):
        inside(floats)


def test_as_a_module_after_the_loader(key: dlmt.Key) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(240, 4))
    names = {"torch": torch, "transform": Encrypt(key, SCHEME), "model": model}
    whole = line("after the loader", **names)["model"]
    loader = DataLoader(torch.utils.data.TensorDataset(pixels(), torch.arange(6)), 3)
    for images, _ in loader:
        assert torch.equal(whole(images), model(expected(images, key)))
    assert set(whole.state_dict()) == {"1.1.weight", "1.1.bias"}
    with pytest.raises(InputTypeError, match="found no image"):
        whole(pixels().float())


# --- Albumentations --------------------------------------------------------------------------------------------------


@pytest.fixture
def A() -> Any:
    pytest.importorskip("albumentations")
    import dlmt_fast.albumentations

    return dlmt_fast.albumentations.A


def arrays(images: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def test_albumentations(A: Any, key: dlmt.Key) -> None:
    images = pixels()
    pipeline = line("Albumentations", A=A, dlmt_fast=dlmt, key=key, scheme=SCHEME)["pipeline"]
    pipeline.transforms[0].p = 1.0
    want = expected(images.flip(-1), key)
    for array, target in zip(arrays(images), want, strict=True):
        mask = array[..., 0].copy()
        done = pipeline(image=array, mask=mask)
        assert torch.equal(done["image"], target)
        assert np.array_equal(done["mask"].numpy(), mask[:, ::-1])


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"dtype": "uint8"}, "uint8"), ({"dtype": "float16", "mean": 0.5, "std": 0.25}, "float16"), ({}, "float32")],
    ids=str,
)
def test_albumentations_targets(A: Any, options: dict[str, Any], dtype: str, key: dlmt.Key) -> None:
    from dlmt_fast.albumentations import Encrypt as Arrays

    images = pixels()
    plan = SCHEME.plan(key, (3, 8, 10), **{"dtype": "float32"} | options)
    want = dlmt.encrypt(arrays(images), plan, layout="NHWC", backend="reference")
    assert want.dtype == np.dtype(dtype)
    pipeline = A.Compose([Arrays(key, SCHEME, **options)], additional_targets={"second": "image", "third": "mask"})
    stack = arrays(images)
    assert np.array_equal(pipeline(image=stack[0], second=stack[1])["second"], want[1])
    assert np.array_equal(pipeline(images=stack)["images"], want)
    assert np.array_equal(np.stack(pipeline(images=list(stack))["images"]), want)
    assert np.array_equal(pipeline(volume=stack)["volume"], want)
    assert np.array_equal(pipeline(volumes=stack[None])["volumes"][0], want)
    passed = {"mask": stack[2], "masks": [stack[3][..., 0]], "third": stack[4], "label": 5}
    done = pipeline(image=stack[0], **passed)
    assert np.array_equal(done["image"], want[0])
    assert all(np.array_equal(done[name], value) for name, value in passed.items())
    gray = pixels(1, (1, 5, 7))
    target = dlmt.encrypt(gray, SCHEME.plan(key, (1, 5, 7), **{"dtype": "float32"} | options), backend="reference")
    for array in (gray[0, 0].numpy(), gray[0].permute(1, 2, 0).numpy()):
        assert np.array_equal(pipeline(image=array)["image"], target[0, 0].numpy().reshape(array.shape))


def test_albumentations_let_nothing_pass(A: Any, key: dlmt.Key) -> None:
    from dlmt_fast.albumentations import Encrypt as Arrays

    transform = Arrays(key, SCHEME)
    image = arrays(pixels())[0]
    for sample, words in [
        ({}, "found no image"),
        ({"mask": image}, "found no image"),
        ({"image": None, "mask": image}, "found no image"),
        ({"image": image.astype(np.float32)}, "uint8, got float32"),
        ({"image": image.transpose(2, 0, 1)}, r"got uint8 \(3, 8, 10\)"),
        ({"image": torch.from_numpy(image)}, "NumPy arrays"),
        ({"image": image, "again": image}, "'again' holds an image"),
        ({"image": image, "again": arrays(pixels())}, "'again' holds an image"),
    ]:
        with pytest.raises(InputTypeError, match=words):
            transform(**sample)
    transform.p = 0.0  # it has no probability
    transform.replay_mode = True  # as A.ReplayCompose sets it for a transform that was not applied before
    assert transform(image=image)["image"].dtype == np.float32
    transform.replay_mode = False
    assert transform(image=image)["image"].dtype == np.float32
    for options in ({"normalize": "other"}, {"dtype": "uint8", "mean": 0.5}):
        with pytest.raises(ParameterError):
            Arrays(key, SCHEME, **options)


@pytest.mark.filterwarnings("ignore:Transform .* has no 'p' parameter:UserWarning")  # on the way to its KeyError
@pytest.mark.parametrize("form", ["dict", "json", "yaml"])
def test_albumentations_serialisation(A: Any, form: str, tmp_path: Path, key: dlmt.Key, secret: bytes) -> None:
    """As Albumentations tests its own Lambda: written down by name, given back by hand; same result for a seed."""
    from dlmt_fast.albumentations import Encrypt as Arrays

    transform = Arrays(key, SCHEME, name="mine")
    pipeline = A.Compose([A.HorizontalFlip(p=0.5), A.RandomCrop(5, 6), transform], seed=7)
    by_name = {"mine": transform}
    if form == "dict":
        written = json.dumps(A.to_dict(pipeline))
        again = A.from_dict(json.loads(written), nonserializable=by_name)
    else:
        A.save(pipeline, tmp_path / "p", data_format=form)
        written = (tmp_path / "p").read_text()
        again = A.load(tmp_path / "p", data_format=form, nonserializable=by_name)
    for text in (written, repr(pipeline), str(transform)):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    assert key.fingerprint not in written
    image = arrays(pixels())[0]
    pipeline.set_random_seed(7)
    again.set_random_seed(7)
    for _ in range(5):
        assert np.array_equal(again(image=image)["image"], pipeline(image=image)["image"])
    with pytest.raises((ValueError, KeyError)):
        A.from_dict(A.to_dict(pipeline))
    with pytest.raises(KeyError):
        A.from_dict(A.to_dict(pipeline), nonserializable={"other": transform})


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (None, "needs the package 'albumentations', which is not installed: pip install albumentations"),
        (
            SimpleNamespace(__version__="2.5", BasicTransform=SimpleNamespace(apply_in_invocation=None)),
            "knows albumentations 2.0, and 2.5 works otherwise",
        ),
    ],
    ids=["missing", "AlbumentationsX"],
)
def test_another_albumentations_or_none(library: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", library)
    monkeypatch.delitem(sys.modules, "dlmt_fast.albumentations", raising=False)
    with pytest.raises(BackendError, match=words):
        importlib.import_module("dlmt_fast.albumentations")


def test_albumentations_pickling(A: Any, key: dlmt.Key) -> None:
    from dlmt_fast.albumentations import Encrypt as Arrays

    pipeline = A.Compose([Arrays(key, SCHEME), A.ToTensorV2()])
    image = arrays(pixels())[0]
    want = pipeline(image=image)["image"]
    for leave in (pickle.dumps, lambda held: torch.save(held, io.BytesIO())):
        with pytest.raises(SecretExportError, match="allow_export"):
            leave(pipeline)
    with dlmt.keys.allow_export():
        data = pickle.dumps(pipeline)
    assert torch.equal(pickle.loads(data)(image=image)["image"], want)
    assert copy.deepcopy(pipeline).transforms[0] is pipeline.transforms[0]
