"""Jobs over stores: encrypt, decrypt, verify, inspect. Images go from a store to the kernels and back; none is lost."""

from .decrypt import decrypt_store
from .encrypt import encrypt_store
from .inspection import Inspection, inspect_store
from .options import JobOptions
from .preview import Preview, preview_decrypt, preview_encrypt
from .sheet import Sheet, write_sheet
from .slices import Slice
from .summary import Summary
from .verify import verify_store

__all__ = [
    "Inspection",
    "JobOptions",
    "Preview",
    "Sheet",
    "Slice",
    "Summary",
    "decrypt_store",
    "encrypt_store",
    "inspect_store",
    "preview_decrypt",
    "preview_encrypt",
    "verify_store",
    "write_sheet",
]
