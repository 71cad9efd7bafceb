"""The demo: real photographs through the whole package, with every figure measured in the same run."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .errors import StoreError, UsageError, missing
from .functional import decrypt, encrypt
from .keys import Key
from .pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from .pipeline.owner import default_folder
from .schemes import DLMT
from .stores.contract import Refused
from .stores.decode import decode
from .stores.folder import FolderSource, Options
from .stores.png import encode_png

_SIZE = (256, 256)
_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
#: The five modes at parameters that the paper uses.
SETTINGS = {
    "MAT": DLMT("mat", max_v_add=256),
    "MMT": DLMT("mmt", max_v_mul=10),
    "Rise+MMT": DLMT("rise_mmt", max_v_mul=10, rise_v=300),
    "MAT+MMT": DLMT("mat_mmt", max_v_add=256, max_v_mul=10),
    "MMT+MAT": DLMT("mmt_mat", max_v_add=256, max_v_mul=10),
}
_MARKER = "made-by-dlmt-demo.txt"
_ROUNDS = 15
_BATCH_BYTES = 64 << 20


def run_demo(images: Path | None, output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Photographs -> key -> encrypt -> verify -> decrypt, with measured errors and speed, and a picture.

    Args:
        images: a folder of photographs; None takes scikit-image's.
        output: receives the photographs, the key, both stores and the picture; an earlier demo there is replaced.
        say: prints a line.

    Returns:
        The measured figures.
    """
    photographs = _photographs(images)
    _prepare(output)
    _write_photographs(photographs, output / "photographs")
    c, h, w = photographs.shape[1:]
    say(f"photographs: {len(photographs)} at {c}x{h}x{w} in {output / 'photographs'}")
    facts: dict[str, Any] = {"photographs": len(photographs), "shape": [c, h, w]}
    facts["stores"] = _stores(photographs, output, say)
    key = Key.load(output / "demo.dlmtkey")
    facts["round_trip"] = _round_trips(photographs, key, say)
    facts["speed"] = _speed(photographs, key, say)
    picture = output / "five-modes.png"
    _draw(photographs, key, picture)
    facts["picture"] = str(picture)
    say(f"picture: the originals beside the five modes in {picture}")
    say(
        "note: larger parameters hide more from the eye and nothing from an attacker: all images share one affine map "
        "a pixel, so whoever holds some hundred of them can undo most of it without the key (README, What it protects)"
    )
    return facts


def _prepare(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / _MARKER).exists():
            raise UsageError(f"{output} is not empty and not an earlier demo; choose another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / _MARKER).write_text("This folder is replaced by the next `dlmt demo`.\n")


def _photographs(folder: Path | None) -> NDArray[np.uint8]:
    """Colour images (N, 3, H, W) of one size."""
    if folder is None:
        spec = importlib.util.find_spec("skimage")
        if spec is None or not spec.submodule_search_locations:
            raise missing("scikit-image", "the demo's photographs (or pass --images DIR)", "demo")
        data = Path(spec.submodule_search_locations[0]) / "data"
        return np.stack([decode(data / name, channels=3, size=_SIZE) for name in _PHOTOGRAPHS])
    source = FolderSource(folder, Options(channels=3, size=_SIZE))
    found = []
    for item in source.read(range(len(source)), workers=2):
        if isinstance(item, Refused):
            raise StoreError(f"{folder / item.path}: {item.reason}")
        found.append(item.images)
    return np.concatenate(found)


def _write_photographs(photographs: NDArray[np.uint8], folder: Path) -> None:
    folder.mkdir()
    for i, image in enumerate(photographs):
        (folder / f"{i:03d}.png").write_bytes(encode_png(image))


def _stores(photographs: NDArray[np.uint8], output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The command line's way: key file, encrypt, verify, decrypt; for training (range) and exactly (none)."""
    scheme = SETTINGS["MAT+MMT"]
    key = Key.generate(scheme.params)
    key_path = output / "demo.dlmtkey"
    key.save(key_path)
    say(f"key: {key!r} for {scheme!r} in {key_path}")
    facts: dict[str, Any] = {}
    for normalize in ("range", "none"):
        store, back = output / f"encrypted-{normalize}", output / f"decrypted-{normalize}"
        done = encrypt_store(
            output / "photographs", store, key, scheme, _owner(key_path), JobOptions(normalize=normalize, workers=2)
        )
        checked = verify_store(store, key, _owner(key_path))
        decrypt_store(store, back, key, _owner(key_path))
        error = _store_error(photographs, back)
        facts[normalize] = {"images_per_second": done.outputs / done.seconds, "largest_error": error}
        say(
            f"store {normalize}: {done.outputs} images encrypted in {done.seconds:.2f} s, {checked.outputs} verified, "
            f"decrypted with a largest error of {error} gray levels"
        )
    return facts


def _owner(key_path: Path) -> Callable[[str], Path]:
    return lambda store_id: default_folder(key_path, store_id)


def _store_error(photographs: NDArray[np.uint8], folder: Path) -> int:
    source = FolderSource(folder)
    back = np.concatenate([b.images for b in source.read(range(len(source)), 1) if not isinstance(b, Refused)])
    return _largest_error(photographs, back)


def _largest_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def _round_trips(photographs: NDArray[np.uint8], key: Key, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Each mode's measured round-trip error beside its bound."""
    rows = []
    say("round trip, gray levels:  mode       output            largest  mean    bound")
    for name, scheme in SETTINGS.items():
        for normalize, dtype in (("none", "int32"), ("range", "uint8"), ("range", "float32")):
            plan = scheme.plan(key, photographs.shape[1:], normalize, dtype)
            back = decrypt(encrypt(photographs, plan), plan)
            largest = _largest_error(photographs, back)
            mean = float(np.abs(photographs.astype(np.int16) - back).mean())
            if largest > plan.worst_error:
                raise StoreError(f"{name} {normalize} {dtype}: error {largest} is over its bound {plan.worst_error}")
            row = {"mode": name, "normalize": normalize, "dtype": dtype, "largest": largest, "mean": mean}
            rows.append(row | {"bound": plan.worst_error})
            output = f"{normalize} {dtype}"
            say(
                f"                          {name:<10} {output:<17} {largest:>4}     {mean:<7.3f} {plan.worst_error:>3}"
            )
    return rows


def _speed(photographs: NDArray[np.uint8], key: Key, say: Callable[[str], None]) -> dict[str, Any]:
    """Throughput of the transform and of a plain copy of the same bytes, interleaved in one run."""
    count = max(1, _BATCH_BYTES // photographs[0].size)
    batch = np.ascontiguousarray(np.resize(photographs, (count, *photographs.shape[1:])))
    plan = SETTINGS["MAT+MMT"].plan(key, batch.shape[1:])
    out = np.zeros_like(batch)
    times: dict[str, list[float]] = {"copy": [], "encrypt": []}
    encrypt(batch, plan, out=out, threads=1)
    for _ in range(_ROUNDS):
        for name, work in (
            ("copy", lambda: np.copyto(out, batch)),
            ("encrypt", lambda: encrypt(batch, plan, out=out, threads=1)),
        ):
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    copy, transform = median(times["copy"]), median(times["encrypt"])
    facts: dict[str, Any] = {
        "backend": backends.auto().name,
        "megapixels_per_second": batch.size / transform / 1e6,
        "copy_megapixels_per_second": batch.size / copy / 1e6,
        "share_of_copy": copy / transform,
    }
    say(
        f"speed: {facts['backend']} backend, 1 thread, {count} images: {facts['megapixels_per_second']:.0f} Mvalues/s, "
        f"{100 * facts['share_of_copy']:.0f} % of a plain memory copy in the same run "
        f"({facts['copy_megapixels_per_second']:.0f} Mvalues/s)"
    )
    return facts


def _draw(photographs: NDArray[np.uint8], key: Key, path: Path) -> None:
    """The original beside the five modes (in the manner of the paper's Fig. 2), one row a photograph."""
    from PIL import Image, ImageDraw, ImageFont

    shown = photographs[:4]
    tile, gap, head = shown.shape[2], 8, 44
    columns = [("original", "", shown)]
    for name, scheme in SETTINGS.items():
        plan = scheme.plan(key, shown.shape[1:])
        columns.append((name, _caption(scheme), encrypt(shown, plan)))
    canvas = Image.new("RGB", (gap + len(columns) * (tile + gap), head + len(shown) * (tile + gap)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for i, (name, caption, images) in enumerate(columns):
        left = gap + i * (tile + gap)
        pen.text((left, 4), name, fill="black", font=font)
        pen.text((left, 23), caption, fill="gray", font=ImageFont.load_default(12))
        for j, image in enumerate(images):
            canvas.paste(
                Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), (left, head + j * (tile + gap))
            )
    canvas.save(path)


def _caption(scheme: DLMT) -> str:
    names = {"max_v_add": "MAX_ADD", "max_v_mul": "MAX_MUL", "rise_v": "rise"}
    return ", ".join(f"{names[name]} {value}" for name, value in scheme.params.items() if name in names)
