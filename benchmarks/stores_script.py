"""What an able user would write instead of `dlmt encrypt`: Pillow, NumPy and a pool of processes.

python benchmarks/stores_script.py SRC DST MATRICES.npz [--workers N] [--compress-level L]

It keeps no journal, hides no name, syncs nothing and checks nothing; the pixels are those of `dlmt encrypt`, but that
float32 may round the other way where a value lies in the middle of two gray levels.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from pathlib import Path

import numpy as np
import PIL.Image

_given: dict[str, np.ndarray] = {}


def load(matrices: Path) -> None:
    """Once a process: `add` and `mul`, int32 (H, W, C), and `lo` and `hi`, the bounds of the values."""
    with np.load(matrices) as arrays:
        _given.update(arrays)


def transform(pixels: np.ndarray) -> np.ndarray:
    """(A + Radd) * Rmul, brought to 0..255."""
    values = (pixels.astype(np.int32) + _given["add"]) * _given["mul"]
    scale = np.float32(255 / (_given["hi"] - _given["lo"]))
    return ((values - _given["lo"].astype(np.int32)).astype(np.float32) * scale + np.float32(0.5)).astype(np.uint8)


def convert(path: Path, source: Path, target: Path, level: int) -> None:
    """One file."""
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    name = (target / path.relative_to(source)).with_suffix(".png")
    PIL.Image.fromarray(transform(pixels)).save(name, compress_level=level)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("matrices", type=Path)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--compress-level", type=int, default=6)
    given = parser.parse_args()
    paths = sorted(path for path in given.source.rglob("*") if path.is_file())
    for folder in {path.parent for path in paths}:
        (given.target / folder.relative_to(given.source)).mkdir(parents=True, exist_ok=True)
    work = functools.partial(convert, source=given.source, target=given.target, level=given.compress_level)
    with multiprocessing.Pool(given.workers, load, (given.matrices,)) as pool:
        for _ in pool.imap_unordered(work, paths, chunksize=8):
            pass


if __name__ == "__main__":
    main()
