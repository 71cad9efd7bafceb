"""Peak memory of `encrypt_store` at two sizes of a store, each job in a fresh process.

python benchmarks/memory.py benchmarks/results/memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, encrypt_store
from dlmt_fast.pipeline.arenas import few_arenas
from dlmt_fast.stores.png import encode_png

SIZES = {"folder": (10_000, 100_000), "idx": (6_000, 60_000)}


def make_folder(root: Path, count: int, classes: int = 10) -> Path:
    """`count` PNG files of 8x8 pixels in `classes` folders."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), np.uint8)
    encoded = [encode_png(image) for image in pixels]
    for place in range(classes):
        (root / f"class{place}").mkdir(parents=True)
    for place in range(count):
        (root / f"class{place % classes}" / f"{place:07d}.png").write_bytes(encoded[place % len(encoded)])
    return root


def make_idx(path: Path, count: int) -> Path:
    """An IDX file of `count` images of 28x28 pixels."""
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28))
        for start in range(0, count, 1000):
            block = np.random.default_rng(start).integers(0, 256, (min(1000, count - start), 28, 28), np.uint8)
            file.write(block.tobytes())
    return path


def encrypt_here(source: Path, place: Path, workers: int) -> dict[str, Any]:
    """Encrypt in this process, which has done nothing else, as the command does; peak resident memory in KiB, of this
    process and of the largest of its workers."""
    few_arenas()
    workers_seen = Children()
    options = JobOptions(workers=workers)
    target = place / "store" / source.name if source.is_file() else place / "store"
    owner = place / "owner"
    summary = encrypt_store(source, target, dlmt.Key(bytes(range(32))), dlmt.DLMT("mat_mmt"), lambda _: owner, options)
    return {
        "images": summary.outputs,
        "seconds": round(summary.seconds, 2),
        "parent_kib": peak_of(os.getpid()),
        "largest_worker_kib": workers_seen.stop(),
    }


def peak_of(pid: int) -> int:
    """A process's peak resident memory, KiB. Not getrusage's, which begins with the peak of the process that started
    this one."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", text)
    return int(found[1]) if found else 0  # a process that has just ended has no memory


class Children:
    """Looks at this process's children now and then, until stopped."""

    def __init__(self) -> None:
        self._largest, self._stopped = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._stopped.wait(0.05):
            for children in Path("/proc/self/task").glob("*/children"):
                with suppress(OSError):  # of the thread or the child, which have just ended
                    self._largest = max([self._largest, *map(peak_of, map(int, children.read_text().split()))])

    def stop(self) -> int:
        """The largest peak that was seen, KiB."""
        self._stopped.set()
        self._thread.join()
        return self._largest


def in_a_fresh_process(source: Path, place: Path, workers: int) -> dict[str, Any]:
    """`encrypt_here` in a process of its own."""
    command = [sys.executable, os.fspath(Path(__file__).resolve()), "--one", os.fspath(source), os.fspath(place)]
    done = subprocess.run([*command, str(workers)], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(kind: str, sizes: tuple[int, int], workers: int, place: Path, repeats: int) -> dict[str, Any]:
    """Both sizes, in turn, some times; growth is that of the medians."""
    rows: list[dict[str, Any]] = []
    for count in sizes:
        source = place / f"{kind}-{count}" / "images-idx3-ubyte" if kind == "idx" else place / f"{kind}-{count}"
        if not source.exists():
            (make_idx if kind == "idx" else make_folder)(source, count)
    for _ in range(repeats):
        for count in sizes:
            source = place / f"{kind}-{count}" / "images-idx3-ubyte" if kind == "idx" else place / f"{kind}-{count}"
            rows.append(in_a_fresh_process(source, place / "job", workers))
            shutil.rmtree(place / "job")
            print(kind, workers, rows[-1], file=sys.stderr, flush=True)
    growth = {}
    for which in ("parent_kib", "largest_worker_kib"):
        small, large = (float(np.median([row[which] for row in rows if row["images"] == count])) for count in sizes)
        growth[which] = round(large / small - 1, 4) if small else 0.0
    return {"kind": kind, "workers": workers, "growth": growth, "runs": rows}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(encrypt_here(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON; must not exist")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists; results are never mixed with older ones")
    with tempfile.TemporaryDirectory() as place:
        rows = [
            compare(kind, sizes, workers, Path(place), given.repeats)
            for kind, sizes in SIZES.items()
            for workers in (1, 2)
        ]
    facts = {
        "version": dlmt.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "time": time.strftime("%Y-%m-%d"),
    }
    given.output.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
