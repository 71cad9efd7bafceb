"""Exception classes, and the words of every input check.

Every error that a user can cause is a `DlmtError`. It says what was expected, what came and what to do, and it never
holds key material. Most classes also derive from the built-in that Python users expect (`ValueError`, `TypeError`,
`OSError`), so that existing `except` clauses keep working.
"""

from __future__ import annotations

from typing import Any


class DlmtError(Exception):
    """Base of all errors raised on purpose by this package."""


class ParameterError(DlmtError, ValueError):
    """A scheme parameter or an option is outside what the contract allows."""


class InputTypeError(DlmtError, TypeError):
    """An argument has the wrong kind or dtype; nothing is cast silently."""


class InputShapeError(DlmtError, ValueError):
    """An argument has the wrong shape or layout."""


class DecryptError(DlmtError, ValueError):
    """The values cannot come from this key and these parameters."""


class BackendError(DlmtError, RuntimeError):
    """A backend was asked for that cannot run here or cannot take this input."""


class KeyFileError(DlmtError):
    """A key file cannot be used. The subclasses say why."""


class KeyDamagedError(KeyFileError, ValueError):
    """The key file is truncated, altered or not a key file."""


class KeyVersionError(KeyFileError, ValueError):
    """The key file was written by a newer version or for another contract."""


class KeyPassphraseError(KeyFileError, ValueError):
    """The key file is sealed and the passphrase is missing or wrong."""


class KeyFingerprintError(KeyFileError, ValueError):
    """The secret in the file is not the one that the file's fingerprint names."""


class KeyPermissionError(KeyFileError, PermissionError):
    """An unsealed key file can be read by others."""


class KeyExistsError(KeyFileError, FileExistsError):
    """A key file would be overwritten without being asked to."""


class SecretExportError(DlmtError, TypeError):
    """Something that holds the secret was about to be pickled or exported."""


class StoreError(DlmtError):
    """A store of images cannot be read, written or trusted."""


class StoreDamagedError(StoreError, ValueError):
    """A store's files do not match its manifest, or a file is malformed."""


class ImageError(StoreError, ValueError):
    """One image file cannot be taken as it is."""


class WrongKeyError(StoreError, ValueError):
    """The store was made with another key."""


class RemoteError(StoreError, OSError):
    """A remote store was not reached, or refused or failed to answer. As for any OSError, `errno` tells what sort of
    failure it was: `RemoteError(errno.ETIMEDOUT, "words")`."""

    def __str__(self) -> str:
        return str(self.strerror)


class CheckError(DlmtError, RuntimeError):
    """A running transform gave another value than the reference, or could not be compared with it.

    Attributes:
        difference: a `difference.Difference`, where it was found in this process; else None. It tells one pixel and its
            transformed value: keep it with the key's owner.
    """

    def __init__(self, message: str, difference: Any = None) -> None:
        super().__init__(message)
        self.difference = difference


class UsageError(DlmtError, ValueError):
    """The command or call cannot mean anything as given (exit code 2)."""


_MEND_PICKLE = (
    "it holds the secret. It pickles by itself only while multiprocessing starts a child process; "
    "elsewhere write `with dlmt_fast.keys.allow_export():` around the call if the secret may leave this process, "
    "or save the key with key.save(path)."
)


def refuse_export(what: str) -> SecretExportError:
    """The error for pickling, torch.save or export of `what` (a class name)."""
    return SecretExportError(f"a {what} cannot be pickled or exported here: {_MEND_PICKLE}")


def missing(package: str, needed_for: str, extra: str | None) -> BackendError:
    """The error for an optional dependency that is not installed."""
    install = f'pip install "dlmt-fast[{extra}]"' if extra else f"pip install {package}"
    return BackendError(f"{needed_for} needs the package {package!r}, which is not installed: {install}")


def wrong_kind(images: object) -> InputTypeError:
    """The error for an input that is neither a NumPy array nor a torch tensor."""
    return InputTypeError(
        f"expected a numpy.ndarray or a torch.Tensor, got {type(images).__module__}.{type(images).__qualname__}; "
        "for PIL images use dlmt_fast.transforms.Encrypt, or numpy.asarray(image)"
    )


def wrong_dtype(role: str, expected: str, got: str) -> InputTypeError:
    """The error for an array of another dtype than the plan's."""
    mend = ""
    if role == "images" and expected == "uint8":
        mend = (
            "; transform the stored 0..255 pixels, before any scaling (for floats in 0..1: (x * 255).round() as uint8)"
        )
    return InputTypeError(f"{role} must have dtype {expected}, got {got}; nothing is cast silently{mend}")


def wrong_shape(role: str, shape: tuple[int, ...], plan_shape: tuple[int, int, int], layout: str) -> InputShapeError:
    """The error for images that do not fit the plan, with the likely mend."""
    c, h, w = plan_shape
    want = {"C": c, "H": h, "W": w}
    order = layout.lstrip("N")
    named = ", ".join(f"{axis}={want[axis]}" for axis in order)
    text = f"{role} of shape {shape} do not fit layout={layout!r} with the plan's ({named})"
    other = "HWC" if order == "CHW" else "CHW"
    batch = "N" if layout.startswith("N") else ""
    if c == 1 and shape[-2:] == (h, w) and len(shape) in (2, 3) and shape[-3:-2] != (1,):
        fix = "images[None]" if len(shape) == 2 else ("images[:, None]" if order == "CHW" else "images[..., None]")
        text += f"; a gray image has one channel axis: {fix.replace('images', role)}"
    elif len(shape) in (3, 4) and shape[-3:] == tuple(want[axis] for axis in other):
        text += f'; did you mean layout="{batch}{other}"?'
    elif len(shape) == 4 and not batch:
        text += f'; this is a batch: layout="N{order}"'
    else:
        text += "; make a plan for this size with scheme.plan(key, shape=(C, H, W))"
    return InputShapeError(text)
