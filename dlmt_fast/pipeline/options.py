"""The options of a job, checked, and how they enter the job record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ParameterError
from ..stores.folder import SHARD_SIZE
from ..stores.segments import SEGMENT_BYTES
from .slices import WHOLE, Slice

_KEEP_LETTERS = 500  # of all names that a job keeps, for the store's header holds them
FITS = ("crop", "stretch", "pad")


@dataclass(frozen=True)
class JobOptions:
    """What `encrypt_store` does beside the scheme.

    Attributes:
        normalize, dtype, mean, std: as for `scheme.plan`; dtype None means its default.
        size: (H, W) to bring every image to, or None.
        fit: "crop", "stretch" or "pad": how an image is brought to `size`.
        per_size: images of several sizes are wanted, each with matrices of its own.
        channels: 1 or 3 converts; None takes the images' own.
        ignore: globs on relative paths that are left out.
        duplicates: None, "report" or "drop": look, before the work, for inputs that are equal after decoding;
            "drop" writes the first of equal ones alone.
        shuffle: write the samples in a secret order; see `shuffle`.
        keep: fields of tars or columns of Parquet files that pass unchanged, unprotected.
        on_error: "fail" stops at the first bad image, "quarantine" lists them all and goes on.
        names: "hash" replaces file names by keyed digests, "keep" keeps them.
        classes: "keep" keeps the first folder level, "index" replaces it by numbers.
        shard_size: files a shard of a folder; the job record fixes the boundaries.
        overwrite: replace an earlier store at the target.
        resume: go on with this same job where it was stopped or killed; with nothing there, start.
        check: with `resume`, compare the digests of what is there, not only the sizes.
        workers: how many shards of a folder, or segments of large arrays, are worked on at once, each in a process of
            its own. One shard, and small arrays, are done in this process, with so many threads that decode. With the
            engine "ray": tasks in flight, None for what suits the cluster.
        engine: "local" (processes of this machine) or "ray".
        address: of a Ray cluster; see `ray_engine.run_on_ray`.
        segment_bytes: how much output of an array that goes to one .npy or IDX file a worker does at once, at least; it
            is what a killed job does again, and less than twice that at most.
        device: "cpu", or "cuda" or "cuda:1": where images are transformed; the store's bytes do not depend on it. Each
            worker process has memory of its own on a GPU, some hundred megabytes beside the batches.
        slice: which of the job's shards this call does; the last slice to end finishes the store.
    """

    normalize: str = "range"
    dtype: str | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    size: tuple[int, int] | None = None
    fit: str = "crop"
    per_size: bool = False
    channels: int | None = None
    ignore: tuple[str, ...] = ()
    duplicates: str | None = None
    shuffle: bool = False
    keep: tuple[str, ...] = ()
    on_error: str = "fail"
    names: str = "hash"
    classes: str = "keep"
    shard_size: int = SHARD_SIZE
    overwrite: bool = False
    resume: bool = False
    check: bool = False
    workers: int | None = 1
    engine: str = "local"
    address: str | None = None
    segment_bytes: int = SEGMENT_BYTES
    device: str = "cpu"
    slice: Slice = WHOLE

    def __post_init__(self) -> None:
        _one_of("fit", self.fit, FITS)
        _one_of("on_error", self.on_error, ("fail", "quarantine"))
        if self.duplicates is not None:
            _one_of("duplicates", self.duplicates, ("report", "drop"))
        _one_of("names", self.names, ("hash", "keep"))
        _one_of("classes", self.classes, ("keep", "index"))
        if len(set(self.keep)) != len(self.keep):
            raise ParameterError(f"keep names a field twice: {', '.join(self.keep)}")
        if (letters := sum(map(len, self.keep))) > _KEEP_LETTERS:
            raise ParameterError(f"keep takes names of at most {_KEEP_LETTERS} letters together, got {letters}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ParameterError(f"size must be (H, W), two positive integers, got {self.size}")
        if self.size is not None and self.per_size:
            raise ParameterError("size and per_size exclude each other: one brings images to one size, one keeps sizes")
        if self.channels not in (None, 1, 3):
            raise ParameterError(f"channels must be 1 or 3, got {self.channels}")
        if self.shard_size < 1:
            raise ParameterError(f"shard_size must be at least 1, got {self.shard_size}")
        if self.segment_bytes < 1:
            raise ParameterError(f"segment_bytes must be at least 1, got {self.segment_bytes}")
        if self.resume and self.overwrite:
            raise ParameterError("resume and overwrite exclude each other: one goes on with a job, one starts anew")
        if self.overwrite and not self.slice.whole:
            raise ParameterError(
                "a slice does not overwrite: it could not tell an old store from what other slices have done; "
                "remove the old store first, or run the job whole"
            )
        if self.check and not self.resume:
            raise ParameterError("check is about what a stopped job left: it goes with resume")
        _one_of("engine", self.engine, ("local", "ray"))
        if self.address is not None and self.engine != "ray":
            raise ParameterError("address is that of a Ray cluster: it goes with engine ray")
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ParameterError(f"device must be cpu, cuda, or cuda:N for one of several, got {self.device!r}")
        if self.device != "cpu" and self.engine == "ray":
            raise ParameterError(
                f"device {self.device} goes with the engine local: Ray gives its tasks no GPU unless they ask for one"
            )
        if self.workers is None and self.engine != "ray":
            raise ParameterError("workers must be a number; only the engine ray finds one itself")
        if self.workers is not None and self.workers < 1:
            raise ParameterError(f"workers must be at least 1, got {self.workers}")

    def recorded(self) -> dict[str, Any]:
        """What decides the output's bytes, for the job record. Options of later versions are absent where not used, so
        that the ids of stores stay what they are."""
        later: dict[str, Any] = {"duplicates": "drop"} if self.duplicates == "drop" else {}
        later |= {"shuffle": True} if self.shuffle else {}
        later |= {"keep": sorted(self.keep)} if self.keep else {}
        return later | {
            "normalize": self.normalize,
            "dtype": self.dtype,
            "mean": _hex(self.mean),
            "std": _hex(self.std),
            "size": None if self.size is None else list(self.size),
            "fit": self.fit,
            "per_size": self.per_size,
            "channels": self.channels,
            "ignore": list(self.ignore),
            "on_error": self.on_error,
            "names": self.names,
            "classes": self.classes,
        }


def _hex(values: float | Sequence[float] | None) -> list[str] | None:
    if values is None:
        return None
    return [float(value).hex() for value in (values if isinstance(values, Sequence) else (values,))]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
