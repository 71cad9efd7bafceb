"""Reading a finished store with the key: its manifest, header, plans and transformed images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreDamagedError
from ..keys import Key
from ..schemes import DLMT, Plan
from ..stores.contract import Published
from ..stores.manifest import is_single, read_manifest
from .formats import StoredShard, format_of
from .order import Order
from .remote_storage import at_hand, shard_files
from .seal import StoreSeal
from .shuffle import ARRAYS, Shuffle
from .transforming import Plans


class StoredImages:
    """A finished store that the key opens.

    Raises:
        StoreError: it is unfinished, damaged, or no store.
        WrongKeyError: it was made with another key.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path = path
        self.single = is_single(path)
        self.root = path.parent if self.single else path
        self.manifest = read_manifest(path)
        self.form = format_of(self.manifest.kind)
        self.seal = StoreSeal(key, self.manifest.store_id)
        self.header = self.seal.open_header(self.manifest.sealed)
        self.plans = Plans(self._planner(key))
        self._shuffle: Shuffle | None = None
        if self.header.get("shuffle") == ARRAYS:
            self._shuffle = Shuffle(key, self.manifest.store_id, [shard.count for shard in self.manifest.shards])

    def _planner(self, key: Key) -> Any:
        header = self.header
        try:
            scheme = DLMT.from_params(header["scheme"])
            normalize, dtype = header["normalize"], header["dtype"]
            asked = "narrowest" if normalize == "none" and dtype != "int32" else dtype
            mean, std = (_floats(header[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreDamagedError(f"the sealed header of {self.path} cannot be understood: {error}") from None

        def make(shape: tuple[int, ...]) -> Plan:
            return scheme.plan(key, shape, normalize, asked, mean, std)

        return make

    def order(self, number: int) -> Order | None:
        """The order of the shard's samples, where they are those of an array and were shuffled: nothing else tells
        which is which, as names do for other samples."""
        return self._shuffle.array(number) if self._shuffle is not None else None

    @property
    def needs_bounds(self) -> bool:
        """Whether decrypting needs the owner's ledger."""
        return str(self.header["normalize"]).startswith("minmax")

    @contextmanager
    def opened(self, shard: Published) -> Iterator[StoredShard]:
        """A shard to be read in the block, every file checked against its published digest first."""
        with at_hand(self.root, self.form, shard) as folder:
            yield self.form.open(folder, shard, self.manifest)

    def sample_names(self, shard: Published) -> Iterator[str]:
        """The names of a shard's samples, where each is a file."""
        return (name for name in shard_files(self.root, self.form, shard) if name != shard.name)


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float.fromhex(value) for value in values)
