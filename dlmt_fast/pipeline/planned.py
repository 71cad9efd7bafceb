"""A job before it starts: everything that decides its bytes, and the places that they go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..keys import Key
from ..schemes import DLMT
from ..stores.contract import Kept, Reader, Shape, ShardSpec, Source, Survey
from ..stores.location import is_remote
from ..stores.parquet import ParquetSource
from ..stores.publish import FileOps
from ..stores.segments import cut
from ..stores.webdataset import WebdatasetSource
from .formats import Contents, StoredFormat, format_of
from .job import differences, job_record, settle_shape
from .kinds import check_dtype, check_duplicates, check_kept, named_shards, original_name, shards_of, target_format
from .locks import held
from .naming import OutputNames
from .open import check_target, open_source
from .options import JobOptions
from .owner import OwnerFolder
from .seal import StoreSeal, store_id_of
from .segment_work import in_turn
from .shuffle import ShuffledSource, array_of_labels, reordered, shuffle_of
from .sources import what_changed
from .target import Target
from .task import Task
from .transforming import planner


@dataclass(frozen=True)
class PlannedJob:
    """What `plan_job` settles.

    Attributes:
        kind, dtype, shape: of the store that is made; shape None where sizes differ.
        record: the job record; its keyed digest is the store's id.
        shards: under the names that they are published with.
        classes: the names of the class numbers, where the target has numbers for names.
    """

    source: Source
    target: Target
    key: Key
    scheme: DLMT
    options: JobOptions
    kind: str
    dtype: str
    shape: Shape | None
    record: dict[str, Any]
    seal: StoreSeal
    owner: OwnerFolder
    names: OutputNames
    shards: list[ShardSpec]
    classes: tuple[str, ...] | None
    survey: Survey
    owner_folder: Callable[[str], Path]

    @property
    def store_id(self) -> str:
        """The id of the store."""
        return self.seal.store_id

    def admit(self) -> None:
        """Take up or join what is at the target, where that is this job's; see `Target.admit`."""

        def explain(other: str) -> str:
            return _what_differs(OwnerFolder(self.owner_folder(other), StoreSeal(self.key, other)), self)

        self.target.admit(self.store_id, explain, self.options.resume)

    def labels(self) -> Iterator[tuple[str, str]]:
        """(name in the source, name in the target) of the labels files that go beside the shards."""
        if self.form.labelled or (self.form.folders and not self.source.named):  # labels are with each image
            return iter(())
        return self.source.extra_names([shard.name for shard in self.shards])

    def labels_data(self, original: str, name: str) -> bytes:
        """The content of a labels file that is `original` in the source and `name` in the target."""
        data = self.source.extra_bytes(original)
        if not isinstance(self.source, ShuffledSource):
            return data
        array = array_of_labels(name, [shard.name for shard in self.shards])
        rows = self.source.shuffle.array(array).sample(range(len(self.shards[array].samples)))
        return reordered(data, name, rows)

    @property
    def form(self) -> StoredFormat:
        """The format of the store that is made."""
        return format_of(self.kind)

    def files_of(self, shard: ShardSpec) -> Iterator[str]:
        """The files of a shard to come."""
        if not self.form.one_file:
            yield from self.names.of(shard).values()
        yield shard.name

    def files(self) -> Iterator[str]:
        """What may be written in the target, the manifest apart."""
        for shard in self.shards:
            yield from self.files_of(shard)
        for _, name in self.labels():
            yield name

    def tasks(self, shards: list[ShardSpec]) -> Iterator[Task]:
        """The work on some of the shards, made when it is asked for."""
        originals = shards_of(self.source, self.form, self.options.shard_size)
        for shard in shards:
            reader, original = (
                self.source.part(shard.samples),
                original_name(self.form, self.source, originals[shard.index]),
            )
            odd = {index: self.survey.odd[index].reason for index in shard.samples if index in self.survey.odd}
            yield Task(shard, self.names.of(shard), reader, original, self._contents(shard, reader), odd)

    def _contents(self, shard: ShardSpec, reader: Reader) -> Contents:
        labelled = self.form.labelled and len(shard.samples) > 0 and reader.label_of(shard.samples.start) is not None
        shown = self.classes if self.options.classes == "keep" else None
        array = () if self.form.cut else self.source.array_shape(shard.index)
        joined = self.form.joined and self.source.named
        first = self.shards[0] if joined else shard
        return Contents(
            dtype=self.dtype,
            array=array,
            labelled=labelled,
            classes=shown,
            names=self.options.names == "keep",
            shape=self.shape,
            first=len(first.samples),
            several=joined and len(self.shards) > 1,
            kept=kept_of(self.source),
        )

    def segments(self, shard: ShardSpec) -> int:
        """In how many parts several workers can do a shard at once."""
        file = self.form.array_file(shard, self._contents(shard, self.source))
        if file is None or is_remote(self.target.root) or in_turn(self.source, shard.index):
            return 1
        return len(cut(file, self.options.segment_bytes))

    def written_labels(self, shard: ShardSpec) -> list[int] | None:
        """The class numbers of a shard's samples in writing order, where it is to hold some."""
        reader = self.source.part(shard.samples)
        if not self._contents(shard, reader).labelled:
            return None
        found = [reader.label_of(index) for index in self.names.of(shard)]
        return [label for label in found if label is not None]


def kept_of(source: Source) -> tuple[Kept, ...]:
    """The fields of a source's samples that pass unchanged."""
    return source.kept if isinstance(source, (WebdatasetSource, ParquetSource)) else ()


def plan_job(
    source_path: Path,
    target_path: Path,
    key: Key,
    scheme: DLMT,
    owner_folder: Callable[[str], Path],
    options: JobOptions,
    source_kind: str | None,
    target_named: str | None,
    ops: FileOps,
    strict: bool = True,
) -> PlannedJob:
    """Look at the source and the target, and settle what the job is. Nothing is written; see `encrypt_store`.

    Args:
        strict: refuse images that cannot be taken where `options.on_error` is "fail"; else they are in the survey.
    """
    source = open_source(source_path, options, source_kind)
    form = target_format(source, target_named)
    check_target(source, form, options)
    joins = options.resume or not options.slice.whole
    target = Target(
        target_path,
        source.single and form.one_file and not form.joined,
        source_path,
        options.overwrite,
        joins,
        ops,
        lambda other: _who(owner_folder(other)),
    )
    if options.shuffle:
        source.pick(())  # refused before any work
    survey = source.survey()
    shape = settle_shape(survey, options, strict)
    form.check_job(shape, options.on_error)
    check_kept(form, kept_of(source))
    if options.duplicates == "drop":
        check_duplicates(form)
    dtype = _stored_dtype(scheme, key, options, {shape[0] for shape in survey.shapes}, form)
    cut = shards_of(source, form, options.shard_size)
    record = job_record(source, cut, scheme, options, form.kind, form.libraries)
    seal = StoreSeal(key, store_id_of(key, record))
    if options.shuffle:
        source = ShuffledSource(source, shuffle_of(source, key, seal.store_id))
        survey = source.placed(survey)
    never_written = {item.index for item in survey.refused} | survey.odd.keys()
    names = OutputNames(source, form, seal, options, dtype, cut, never_written)
    owner = OwnerFolder(owner_folder(seal.store_id), seal, ops)
    classes = source.number_classes() if form.labelled else None
    single = target.path if target.single else None
    shards = named_shards(form, source, cut, single, seal, options)
    job = PlannedJob(
        source=source,
        target=target,
        key=key,
        scheme=scheme,
        options=options,
        kind=form.kind,
        dtype=dtype,
        shape=shape,
        record=record,
        seal=seal,
        owner=owner,
        names=names,
        shards=shards,
        classes=classes,
        survey=survey,
        owner_folder=owner_folder,
    )
    if options.shuffle:
        for _, name in job.labels():  # refused before any work
            array_of_labels(name, [shard.name for shard in shards])
    if options.resume and options.slice.whole:  # before there is an owner's folder; slices ask inside the gate
        job.admit()
    return job


def _who(owner: Path) -> str:
    """Who runs the job with this owner's folder, in words."""
    return "; ".join(words if part.whole else f"slice {part}: {words}" for part, words in held(owner).items())


def _what_differs(other: OwnerFolder, job: PlannedJob) -> str:
    found = other.read_record()
    if found is None:
        return f"the key is another, or {other.root} is not where that job kept its record (--owner DIR)"
    files = found.get("source", {}).get("files", 0)
    changed = what_changed(other, files, job.source.stamps()) if found.get("source") != job.record["source"] else None
    return differences(found, job.record, changed) or "the key is another"


def _stored_dtype(scheme: DLMT, key: Key, options: JobOptions, channels: set[int], form: StoredFormat) -> str:
    """The dtype of the files; refuses what no plan or no file of this kind can hold, before any work."""
    make = planner(scheme, key, options)
    dtype = {make((count, 1, 1)).dtype for count in channels}.pop()
    check_dtype(form, dtype)
    return dtype
