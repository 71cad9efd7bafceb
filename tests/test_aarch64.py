"""The C++ loops without Python, over the known answers and over larger images: compiled for this machine, and for
aarch64 under emulation. csrc/tests/vectors_main.cpp is the program."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast.backends import contract, reference

CSRC = Path(__file__).resolve().parents[1] / "csrc"
VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
NORMALIZE = ("none", "range", "minmax", "minmax_channel")  # in the order of the C++ enumerations
DTYPE = ("uint8", "uint16", "int32", "float32", "float16", "bfloat16")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-pthread",
]
FLOATS = ("float32", "float16", "bfloat16")


def in_order(array: np.ndarray, order: str, shape: tuple[int, int, int]) -> np.ndarray:
    """(N, C, H, W) as (N, outer, C, inner)."""
    if order == "CHW":
        return np.ascontiguousarray(array).reshape(-1, 1, shape[0], shape[1] * shape[2])
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).reshape(-1, shape[1] * shape[2], shape[0], 1)


def write_record(file: BinaryIO, plan: dlmt.Plan, order: str, images: np.ndarray, known: np.ndarray | None) -> None:
    """The reference's results, which are also the known ones where there are any."""
    k = plan.coefficients(order)
    images = in_order(images, order, plan.shape)
    out = np.empty(images.shape, contract.STORAGE[k.dtype])
    groups = {"minmax": 1, "minmax_channel": plan.shape[0]}.get(k.normalize)
    bounds = np.empty((len(images), groups, 2), np.int32) if groups else None
    reference.affine(images, k, out, bounds)
    if known is not None:
        expected = in_order(known, order, plan.shape)
        np.testing.assert_array_equal(out.view(np.uint32) if k.dtype == "float32" else out, expected)
    back = np.empty_like(images)
    assert reference.affine_inverse(out, k, bounds, back) == -1
    head = (NORMALIZE.index(k.normalize), DTYPE.index(k.dtype), *k.M.shape, k.lo, k.hi, len(images))
    std = k.std if k.dtype in FLOATS else None
    parts = (np.array(head, np.int32), k.M, k.B, k.M24, k.B24, std, k.b, k.g, images, out, bounds, back)
    for part in parts:
        if part is not None:
            file.write(np.ascontiguousarray(part).tobytes())


def known_answers() -> Iterator[tuple[dlmt.Plan, np.ndarray, np.ndarray]]:
    for case in VECTORS["cases"]:
        key, shape = dlmt.Key(bytes.fromhex(case["secret_hex"])), tuple(case["shape"])
        scheme = dlmt.DLMT(case["mode"], case["max_v_add"], case["max_v_mul"], case["rise_v"])
        images = np.array(case["images"], np.uint8)

        def floats(words: list[str], like: np.ndarray = images) -> np.ndarray:
            return np.array([int(word, 16) for word in words], np.uint32).reshape(like.shape)

        yield scheme.plan(key, shape, normalize="none"), images, np.array(case["none"])
        for normalize in NORMALIZE[1:]:
            found = case[normalize]
            yield scheme.plan(key, shape, normalize=normalize), images, np.array(found["uint8"])
            plan = scheme.plan(key, shape, normalize=normalize, dtype="float32")
            yield plan, images, floats(found["float32_bits"])
        found = case["range_mean_std"]
        plan = scheme.plan(key, shape, dtype="float32", mean=found["mean"], std=found["std"])
        yield plan, images, floats(found["float32_bits"])


def larger_images() -> Iterator[tuple[dlmt.Plan, np.ndarray, None]]:
    """Long enough for whole vectors, four images at a time, and several threads."""
    key, rng = dlmt.Key(bytes(range(32))), np.random.default_rng(5)
    schemes = (dlmt.DLMT("mat_mmt"), dlmt.DLMT("mat_mmt", max_v_add=8388608, max_v_mul=255), dlmt.DLMT("mmt_mat", 5, 1))
    for scheme, shape in zip(schemes, ((3, 37, 31), (1, 28, 28), (3, 131, 173)), strict=True):
        images = rng.integers(0, 256, (6, *shape), np.uint8)
        images[1] = 7
        for normalize in NORMALIZE:
            for dtype in ("int32", "narrowest") if normalize == "none" else ("uint8", *FLOATS):
                options: dict[str, Any] = {}
                if dtype in FLOATS:
                    options = {"mean": [0.5, -0.25, 3][: shape[0]], "std": [0.25, 1.5, 0.02][: shape[0]]}
                yield scheme.plan(key, shape, normalize=normalize, dtype=dtype, **options), images, None


def png_images() -> Iterator[tuple[bytes, np.ndarray]]:
    """Rows with their filters, any of the five, and the pixels (H, W, C) that Pillow makes of them."""
    rng = np.random.default_rng(6)
    for width, height, channels in ((1, 9, 3), (2, 9, 1), (17, 40, 3), (31, 40, 1), (200, 60, 3)):
        rows = rng.integers(0, 256, (height, 1 + width * channels), np.uint8)
        rows[:, 0] = np.arange(height) % 5 if width < 100 else rng.integers(0, 5, height)
        header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
            for kind, part in chunks
        )
        yield rows.tobytes(), np.asarray(PIL.Image.open(io.BytesIO(data))).reshape(height, width, channels)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The file, and the number of its records."""
    path, count = tmp_path_factory.mktemp("records") / "records.bin", 0
    with path.open("wb") as file:
        for plan, images, known in (*known_answers(), *larger_images()):
            for order in ("CHW", "HWC"):
                write_record(file, plan, order, images, known)
                count += 1
        file.write(np.full(8, -1, np.int32).tobytes())
        for rows, pixels in png_images():
            file.write(np.array(pixels.shape, np.int32).tobytes() + rows + pixels.tobytes())
            count += 1
        file.write(np.full(3, -1, np.int32).tobytes())
    return path, count


def compile_and_run(compiler: str, flags: list[str], runner: list[str], records: tuple[Path, int], folder: Path) -> str:
    if not CSRC.is_dir():
        pytest.skip("the C++ sources are not beside the tests")
    for tool in (compiler, *runner[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = folder / "vectors"
    sources = [CSRC / "tests/vectors_main.cpp", *sorted(CSRC.glob("cpu/*.cpp"))]
    subprocess.run([compiler, *FLAGS, *flags, *map(str, sources), "-o", str(program)], check=True)
    path, count = records
    done = subprocess.run([*runner, str(program), str(path)], capture_output=True, text=True, timeout=500)
    print(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} records," in done.stdout
    assert int(re.search(r"(\d+) values", done.stdout)[1]) > 1_000_000
    return done.stdout


def test_on_this_machine(records: tuple[Path, int], tmp_path: Path) -> None:
    compile_and_run(os.environ.get("CXX", "c++"), [], [], records, tmp_path)


@pytest.mark.long
def test_on_aarch64(records: tuple[Path, int], tmp_path: Path) -> None:
    out = compile_and_run("aarch64-linux-gnu-g++", ["-static"], ["qemu-aarch64"], records, tmp_path)
    assert out.rstrip().endswith("levels: baseline")
