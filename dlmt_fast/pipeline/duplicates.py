"""`--duplicates`: which inputs are equal after decoding, found before the work and kept in the owner's folder."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from ..errors import StoreError
from ..stores.contract import EQUAL, Array, Batch, Reader, Refused, ShardSpec, Source
from ..stores.equal import Contents, Equal
from .attempts import persistently
from .job import refused_error
from .owner import Duplicate, OwnerFolder
from .planned import PlannedJob
from .shuffle import ShuffledSource
from .summary import Advance, Progress, counter

_NAMED = 3  # pairs that a note names


class Duplicates(NamedTuple):
    """How many inputs are equal to an earlier one, of how many; and the first of them."""

    equal: int
    inputs: int
    examples: list[Duplicate]

    @property
    def words(self) -> str:
        """For the summary."""
        pairs = [f"{item.path} = {item.equal_to}" for item in self.examples]
        more = ", ..." if self.equal > len(pairs) else ""
        shown = f" ({', '.join(pairs)}{more})" if pairs else ""
        return f"{self.equal} of {self.inputs} inputs are equal to an earlier one{shown}"


def find_duplicates(job: PlannedJob, progress: Progress) -> Duplicates:
    """Look at all inputs of a job, unless its owner's folder has the lists already, and enter them there.

    The lists depend on the job's inputs alone: the same come out each time. Of equal images the first is the one that
    stays, in the order of the source.

    Raises:
        ImageError: an image cannot be taken, and `on_error` is "fail".
    """
    owner, shards = job.owner, job.shards
    kept = owner.read_duplicates_found(len(shards))
    if kept is None:
        shuffled = job.source if isinstance(job.source, ShuffledSource) else None
        source = job.source if shuffled is None else shuffled.base
        contents, inputs = _digested(source, job.options.workers or 1, job.options.on_error, progress)
        equal = 0
        equals = contents.repeated(inputs) if shuffled is None else contents.repeated(inputs, shuffled.shuffle.places)
        for shard, found in _by_shard(contents, equals, shards):
            equal += len(found)
            owner.write_duplicates(shard, found)
        owner.write_duplicates_found(inputs, equal, len(shards))
        kept = inputs, equal
    every = (item for shard in shards for item in owner.read_duplicates(shard.index))
    return Duplicates(kept[1], kept[0], [item for _, item in zip(range(_NAMED), every, strict=False)])


def dropped_of(owner: OwnerFolder, shard: int) -> Mapping[int, str]:
    """From the samples of a shard that are not to be written to why."""
    return {item.sample: EQUAL + item.equal_to for item in owner.read_duplicates(shard)}


def _digested(source: Source, workers: int, on_error: str, progress: Progress) -> tuple[Contents, int]:
    """The digests of all images that can be decoded, and how many inputs there are."""
    contents, shards = Contents(), source.shards()
    inputs = sum(len(shard.samples) for shard in shards)
    advance = counter(progress, inputs, "compared")
    for shard in shards:
        _add(contents, source.part(shard.samples), shard.samples, workers, on_error, advance)
    return contents, inputs


def _add(contents: Contents, part: Reader, samples: range, workers: int, on_error: str, advance: Advance) -> None:
    """Add the digests of some samples; those that an attempt has added stay."""

    def attempt(number: int, tally: Advance) -> None:
        for item in part.read(samples, workers):
            if isinstance(item, Refused):
                if on_error == "fail":
                    raise refused_error([item])
                tally(1, refused=1)
                continue
            for index, digest in _digests(item):
                if index >= contents.count:
                    _keep(contents, index, digest, part.path_of(index))
            tally(len(item.images), item.images.nbytes)

    persistently(attempt, advance)


def _keep(contents: Contents, index: int, digest: bytes, path: str) -> None:
    """Add a digest. That is not tried again: one that was added by halves would then be equal to itself."""
    try:
        contents.add(index, digest, path)
    except OSError as error:
        raise StoreError(
            f"the digests of images are kept in {tempfile.gettempdir()} (TMPDIR names another folder), which failed: "
            f"{error}"
        ) from None


def _digests(batch: Batch) -> Iterator[tuple[int, bytes]]:
    for index, image in zip(batch.indices, batch.images, strict=True):
        yield index, _digest(image)


def _digest(image: Array) -> bytes:
    found = hashlib.sha256(repr(image.shape).encode("ascii"))
    found.update(image.tobytes())
    return found.digest()


def _by_shard(
    contents: Contents, equals: Iterator[Equal], shards: list[ShardSpec]
) -> Iterator[tuple[int, list[Duplicate]]]:
    """The duplicates of each shard that has some."""
    left = iter(shards)
    shard = next(left)

    def shard_of(index: int) -> int:
        nonlocal shard
        while index not in shard.samples:
            shard = next(left)
        return shard.index

    for number, run in groupby(equals, key=lambda item: shard_of(item.place)):
        yield number, [Duplicate(item.place, contents.name(item.content), contents.name(item.first)) for item in run]
