"""What images were called before, and what their files are called when they come back as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..stores.digests import digest64, repeated
from ..stores.runs import sample_name


class OriginalNames:
    """Original names as PNG: `a.jpg` comes back as `a.png`, or as `a.jpg.png` where two originals of the store differ
    in the suffix alone.

    Args:
        ledgers: gives each shard's names, from stored to original, anew at each call.
    """

    def __init__(self, ledgers: Callable[[], Iterable[dict[str, str]]]) -> None:
        self._twice = repeated(_as_png(name) for names in ledgers() for name in names.values())
        apart = (self._apart(name) for names in ledgers() for name in names.values())
        self._full = bool(self._twice) and bool(repeated(apart))  # a.jpg, a.png and a.jpg.jpg

    def name(self, original: str) -> str:
        """What the image of an original is called."""
        return f"{original}.png" if self._full else self._apart(original)

    def _apart(self, original: str) -> str:
        plain = _as_png(original)
        return f"{original}.png" if digest64(plain) in self._twice else plain


def _as_png(path: str) -> str:
    sample = sample_name(path)
    if sample is not None:
        return f"//{sample}.png"  # as of a tar without a name: inside the class where that is a folder
    folder, slash, last = path.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last) + ".png"
