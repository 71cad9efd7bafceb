"""`dlmt encrypt` over folders of photographs and Fashion-MNIST, beside the same without the transform and a script.

python benchmarks/stores.py benchmarks/results/stores.jsonl --data /tmp/stores

Makes the data where they are not there yet (`stores_data.py`), compares the pixels that all contenders write, then
times whole processes in interleaved rounds, start-up included. `benchmarks/memory.py` measures memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from dlmt_fast.bench import machine
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.idx import IdxSource

sys.path.insert(0, str(Path(__file__).resolve().parent))
import stores_data
from stores_one import IDENTITY, KEY, SCHEME

HERE = Path(__file__).resolve().parent
IDX = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
COUNTS = {224: 4000, 1024: 1000}
CELLS = {f"{form}-{side}": (form, side) for side in COUNTS for form in stores_data.SAVED}
OURS, WITHOUT = "dlmt encrypt", "the same without the transform"
SCRIPTS = {"script, Pillow's defaults": 6, "script, compress_level=1": 1}
TIES = 1e-4  # of the pixels, which float32 may round the other way
_CHECKED = 24  # files


@dataclass(frozen=True)
class Result:
    """Seconds of whole processes, one a round, for one contender and workload.

    `ratio`, of wall time, and `cpu_ratio`, of processor time, are relative to `of`: medians over rounds, each of what
    ran one after the other. Where others use the machine, processor time is the steadier of the two.
    """

    workload: str
    images: int
    megapixels: float
    workers: int
    contender: str
    median_s: float
    p20_s: float
    p80_s: float
    ratio: float
    cpu_ratio: float
    of: str
    samples_s: list[float]
    cpu_s: list[float]


class Folder:
    """A folder of one form and size, and the contenders over it."""

    def __init__(self, name: str, place: Path, count: int, workers: int, target: Path) -> None:
        self.name, self.count, self.workers, self.place = name, count, workers, place
        self.target, self.workload = target, f"{name}, {filesystem_of(target)}"
        self.form, self.side = CELLS[name]
        self.source = place / f"{name}-{count}"
        self.shard = max(1, count // (4 * workers))  # as many shards that no worker waits long for the last one

    def make(self) -> None:
        """The files, unless they are there."""
        if not self.source.exists():
            unfinished = self.source.with_name(f"{self.source.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            stores_data.make_folder(unfinished, self.form, self.side, self.count)
            unfinished.rename(self.source)
        self.matrices = self.place / f"matrices-{self.side}.npz"
        plan = SCHEME.plan(KEY, (3, self.side, self.side))
        m, b = (array.transpose(1, 2, 0) for array in (plan._M, plan._B))
        assert (b % m == 0).all(), "v = (A + Radd) * Rmul"
        np.savez(self.matrices, add=b // m, mul=m, lo=plan.lo, hi=plan.hi)

    def contenders(self) -> dict[str, list[str]]:
        """Their command lines, but for the target."""
        tail = [os.fspath(self.matrices), f"--workers={self.workers}"]
        script = [os.fspath(HERE / "stores_script.py"), "{target}", *tail]
        scripts = {name: [*script, f"--compress-level={level}"] for name, level in SCRIPTS.items()}
        ours = [os.fspath(HERE / "stores_one.py"), "{target}", os.fspath(self.target / "owner"), str(self.workers)]
        return {OURS: [*ours, str(self.shard)], WITHOUT: [*ours, str(self.shard), IDENTITY], **scripts}

    def run(self, contender: str, source: Path, *more: str) -> tuple[float, float]:
        """Seconds of the process, and of processors for it and its workers. The target stays until the next run."""
        target = self.target / "target"
        for made in (target, self.target / "owner"):
            shutil.rmtree(made, ignore_errors=True)
        os.sync()  # else the disk still removes the files of the run before while this one is timed
        program, *words = (word.format(target=target) for word in self.contenders()[contender])
        command = [sys.executable, program, os.fspath(source), *words, *more]
        start, used = time.perf_counter(), processor_seconds()
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        return time.perf_counter() - start, processor_seconds() - used

    def check(self) -> None:
        """Refuse to time contenders that do not write the same pixels, the one without the transform the source's."""
        few = self.place / "few"
        shutil.rmtree(few, ignore_errors=True)
        paths = sorted(path.relative_to(self.source) for path in self.source.rglob("*") if path.is_file())[:_CHECKED]
        for path in paths:
            (few / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source / path, few / path)
        found = {"source": pixels_of(few / path for path in paths)}
        for contender in self.contenders():
            self.run(contender, few, *(["--keep"] if contender in (OURS, WITHOUT) else []))
            found[contender] = pixels_of((self.target / "target" / path).with_suffix(".png") for path in paths)
        for one, two, share in ((WITHOUT, "source", 0.0), *((OURS, script, TIES) for script in SCRIPTS)):
            apart = np.abs(found[one] - found[two])
            if apart.max() > 1 or (apart > 0).mean() > share:
                raise SystemExit(f"{self.name}: {one} and {two} differ in {(apart > 0).mean():.2%} of the pixels")
        if np.array_equal(found[OURS], found["source"]):
            raise SystemExit(f"{self.name}: nothing was transformed")

    def measure(self, rounds: int, script_rounds: int, tell: Callable[[str], None]) -> list[Result]:
        """In each round every contender once, in the other order every other time; scripts in the first rounds only."""
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in self.contenders()}
        for number in range(rounds):
            for contender in list(self.contenders())[:: -1 if number % 2 else 1]:
                if contender not in SCRIPTS or number < script_rounds:
                    samples[contender].append(self.run(contender, self.source))
                    tell(f"{self.name} {number} {contender}: {samples[contender][-1][0]:.2f} s")
        return [self._result(contender, samples) for contender in samples]

    def _result(self, contender: str, samples: dict[str, list[tuple[float, float]]]) -> Result:
        here = samples[contender]
        if contender == OURS:
            of, pairs = "the speed without the transform", zip(samples[WITHOUT], here, strict=True)
        else:
            of, pairs = "the seconds of ours", zip(here, samples[OURS], strict=False)
        walls, processors = zip(*((a / c, b / d) for (a, b), (c, d) in pairs), strict=True)
        return Result(
            self.workload,
            self.count,
            self.count * self.side**2 / 1e6,
            self.workers,
            contender,
            *quantiles([wall for wall, _ in here]),
            statistics.median(walls),
            statistics.median(processors),
            of,
            [wall for wall, _ in here],
            [processor for _, processor in here],
        )


def filesystem_of(path: Path) -> str:
    """The type of file system that a folder lies on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((point, kind) for point, kind in mounts if path.resolve().is_relative_to(point))[1]


def processor_seconds() -> float:
    """User and system, of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pixels_of(paths: Iterable[Path]) -> np.ndarray:
    """All pixels of some files (N, H, W, C), as integers that can be subtracted."""
    return np.stack([np.asarray(PIL.Image.open(path).convert("RGB")) for path in paths]).astype(np.int16)


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """(median, 20 %, 80 %)."""
    low, high = np.quantile(samples, (0.2, 0.8))
    return statistics.median(samples), float(low), float(high)


def fashion_mnist(place: Path, workers: int, rounds: int) -> Result:
    """60,000 images, gzip to gzip: seconds as the job's summary tells them, that is, without starting Python."""
    target, samples = place / IDX.name, []
    for _ in range(rounds):
        shutil.rmtree(place / "owner", ignore_errors=True)
        for left in place.glob(f"{IDX.name}*"):
            left.unlink()
        command = [os.fspath(HERE / "stores_one.py"), os.fspath(IDX), os.fspath(target), os.fspath(place / "owner")]
        done = subprocess.run([sys.executable, *command, str(workers), "1000"], check=True, stdout=subprocess.PIPE)
        samples.append(json.loads(done.stdout)["seconds"])
    images = np.concatenate([item.images for item in read(IDX)])
    plan = SCHEME.plan(KEY, images.shape[1:])
    import dlmt_fast as dlmt

    if not np.array_equal(np.concatenate([item.images for item in read(target)]), dlmt.encrypt(images, plan)):
        raise SystemExit("the IDX file holds other values than encrypt gives")
    return Result(
        "idx-fashion-mnist",
        60_000,
        60_000 * 784 / 1e6,
        workers,
        OURS,
        *quantiles(samples),
        1.0,
        1.0,
        "itself",
        samples,
        [],
    )


def read(path: Path) -> list[Batch]:
    """All batches of an IDX file."""
    return [item for item in IdxSource(path).read(range(60_000), 1) if isinstance(item, Batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines; must not exist")
    parser.add_argument("--data", type=Path, required=True, help="a folder of some 10 GB, on the disk to be measured")
    parser.add_argument("--target", type=Path, help="a folder to write stores to instead, such as one of a tmpfs")
    parser.add_argument("--cell", action="append", choices=CELLS, help="only these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--script-rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=machine.describe()["cpus"])
    parser.add_argument("--share", type=float, default=1.0, help="of the images, for a quick look")
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists; results are never mixed with older ones")
    target = given.target or given.data
    for folder in (given.data, target):
        folder.mkdir(parents=True, exist_ok=True)
    facts = machine.describe() | {name: version(name) for name in ("pillow", "simplejpeg", "isal")}
    cells = [
        Folder(name, given.data, max(_CHECKED, int(COUNTS[CELLS[name][1]] * given.share)), given.workers, target)
        for name in given.cell or CELLS
    ]
    with ProcessPoolExecutor(given.workers) as pool:
        list(pool.map(Folder.make, cells))
    for cell in cells:
        cell.make()
        cell.check()
    keep(given.output, [fashion_mnist(given.data, given.workers, given.rounds)] if IDX.exists() else [], facts)
    for cell in cells:
        rows = cell.measure(given.rounds, given.script_rounds, lambda text: print(text, file=sys.stderr, flush=True))
        keep(given.output, rows, facts)


def keep(output: Path, rows: list[Result], facts: dict[str, Any]) -> None:
    """Append rows to the results, and show them."""
    with open(output, "a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row) | {"machine": facts}) + "\n")
            ratios = f"{row.ratio:5.2f} (processors {row.cpu_ratio:5.2f}) {row.of}"
            print(f"{row.workload:18} {row.contender:32} {row.median_s:7.2f} s  {ratios}", flush=True)


if __name__ == "__main__":
    main()
