"""One job of `stores.py`, in a process of its own: `encrypt_store`, or the same with the transform left out.

Spawned workers load this file again, as the multiprocessing module does with a program's main module, and so leave the
transform out too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, encrypt_store, transforming

KEY, SCHEME = dlmt.Key(bytes(range(32))), dlmt.DLMT("mat_mmt")
IDENTITY = "--identity"


def identity(images: Any, plan: Any, out: Any = None, **options: Any) -> tuple[Any, Any]:
    """In the place of `encrypt`: the images as they are."""
    return images, np.zeros((len(images), 2), np.int32)


if IDENTITY in sys.argv:
    transforming.encrypt = identity


def main() -> None:
    """SRC DST OWNER WORKERS SHARD_SIZE [--names keep] [--identity]"""
    source, target, owner, workers, size = sys.argv[1:6]
    names = "keep" if "--keep" in sys.argv else "hash"
    options = JobOptions(workers=int(workers), shard_size=int(size), names=names)
    summary = encrypt_store(Path(source), Path(target), KEY, SCHEME, lambda _: Path(owner), options)
    print(json.dumps({"images": summary.outputs, "seconds": summary.seconds}))


if __name__ == "__main__":
    main()
