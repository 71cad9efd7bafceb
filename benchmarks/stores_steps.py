"""Where the time of `encrypt_store` goes over a folder of photographs, in one process: processor milliseconds an image.

python benchmarks/stores_steps.py FOLDER
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stores_one import KEY, SCHEME

from dlmt_fast.pipeline import JobOptions, encrypt_store, transforming
from dlmt_fast.stores import batching, decode, folder, folder_writer
from dlmt_fast.stores.contract import FileStamp
from dlmt_fast.stores.publish import FileOps

#: What is measured: (where it is looked up, name). Those further down are parts of those above them.
STEPS = (
    (folder.FolderSource, "survey"),
    (folder, "probe"),
    (FileStamp, "check_unchanged"),
    (folder, "decode"),
    (decode, "decode_jpeg"),
    (decode, "decode_png"),
    (batching, "_batch"),
    (transforming, "encrypt"),
    (folder_writer, "encode_png"),
    (folder_writer.FolderWriter, "_to_disk"),
    (FileOps, "create"),
    (FileOps, "write"),
    (FileOps, "fsync"),
    (folder_writer.hashlib, "sha256"),
    (FileOps, "rename"),
)
_lock = threading.Lock()
_spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])


def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, with its processor and wall time added up under `name`, over all threads."""

    def call(*arguments: Any, **options: Any) -> Any:
        used, start = time.thread_time(), time.perf_counter()
        try:
            return work(*arguments, **options)
        finally:
            with _lock:
                _spent[name][0] += time.thread_time() - used
                _spent[name][1] += time.perf_counter() - start

    return call


def main() -> None:
    for place, name in STEPS:
        setattr(place, name, timed(name, getattr(place, name)))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as made:
        store, owner = Path(made) / "store", Path(made) / "owner"
        used = time.process_time()
        images = encrypt_store(Path(sys.argv[1]), store, KEY, SCHEME, lambda _: owner, JobOptions()).outputs
        used = time.process_time() - used
    print(f"{images} images, {used / images * 1e3:.2f} ms of processors for each")
    for _, name in STEPS:
        processor, wall = _spent[name]
        print(f"{name:16} {processor / images * 1e3:7.3f} ms, {wall / images * 1e3:7.3f} ms with waiting")


if __name__ == "__main__":
    main()
