"""A job whose workers are killed: `python lethal.py ENGINE FOLDER KILLS`, run by test_engines.py.

FOLDER holds `source`. Three runs: to `one` with KILLS workers killed at random file operations, no shard more than
twice; to `two` with three killed over shard 4, which fails; to `two` again, resumed. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store
from dlmt_fast.stores.publish import OS, FileOps


class Lethal(FileOps):
    """Kills the worker that it is used in, now and then. What happened is kept in files: the dead remember nothing.

    Args:
        deaths: a folder for that.
        most: deaths in all.
        each: deaths over one shard.
        only: the shard that is meant; None: any.
        chance: of a death at each operation.
    """

    def __init__(self, deaths: Path, most: int, each: int, only: int | None, chance: float) -> None:
        deaths.mkdir(exist_ok=True)
        self.parent, self.shard = os.getpid(), -1
        self.deaths, self.most, self.each, self.only, self.chance = deaths, most, each, only, chance

    def _maybe(self) -> None:
        if os.getpid() == self.parent or self.only not in (None, self.shard) or random.random() >= self.chance:
            return
        dying = f"process-{os.getpid()}"
        if not self._claim(dying, 1):  # files are written by several threads, and a process dies once
            return
        if self._claim(f"shard-{self.shard}", self.each) and self._claim("any", self.most):
            os.kill(os.getpid(), signal.SIGKILL)
        (self.deaths / f"{dying}-0").unlink()

    def _claim(self, what: str, most: int) -> bool:
        for number in range(most):
            try:
                os.close(os.open(self.deaths / f"{what}-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    def create(self, path: Path, mode: int = 0o666) -> int:
        self._note(path)
        self._maybe()
        return super().create(path, mode)

    def unlink(self, path: Path) -> None:
        """What a dead worker left goes before its shard is begun again, by a worker that did another one before."""
        self._note(path)
        super().unlink(path)

    def _note(self, path: Path) -> None:
        if path.name.startswith(".tmp-"):
            shard = path.name.split("-")[2]
            self.shard = int(shard) if shard.isdigit() else -1

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        super().write(descriptor, bytes(data)[: len(data) // 2])
        self._maybe()
        super().write(descriptor, bytes(data)[len(data) // 2 :])

    def rename(self, old: Path, new: Path) -> None:
        self._maybe()
        super().rename(old, new)

    def fsync_directory(self, path: Path) -> None:
        super().fsync_directory(path)
        self._maybe()


def main(engine: str, root: Path, kills: int) -> dict[str, Any]:
    key, told = dlmt.Key(bytes(range(32))), list[str]()

    def run(target: str, ops: FileOps, **more: Any) -> Summary:
        options = JobOptions(shard_size=4, engine=engine, workers=2, on_error="quarantine", **more)
        owner = root / f"own-{target}"
        scheme = dlmt.DLMT("mat_mmt")
        return encrypt_store(
            root / "source", root / target, key, scheme, lambda _: owner, options, ops=ops, tell=told.append
        )

    first = run("one", Lethal(root / "deaths", kills, 2, None, 0.05))
    try:
        run("two", Lethal(root / "fatal", 3, 3, 4, 1.0))
        error = "none"
    except StoreError as failure:
        error = str(failure)
    left = [path.name for folder in ("two", "own-two") for path in (root / folder).rglob(".tmp-*")]
    again = run("two", OS, resume=True)
    return {"first": first.as_dict(), "error": error, "told": told, "left": left, "again": again.as_dict()}


if __name__ == "__main__":
    engine, root, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if engine == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[4])
    print(json.dumps(main(engine, root, kills)))
    if engine == "ray":
        ray.shutdown()
