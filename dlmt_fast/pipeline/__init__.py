"""Jobs over stores: encrypt, decrypt, verify. Carries images from a store to the kernels and back, and loses none."""

from .decrypt import decrypt_store
from .encrypt import encrypt_store
from .options import JobOptions
from .preview import Preview, preview_decrypt, preview_encrypt
from .slices import Slice
from .summary import Summary
from .verify import verify_store

__all__ = [
    "JobOptions",
    "Preview",
    "Slice",
    "Summary",
    "decrypt_store",
    "encrypt_store",
    "preview_decrypt",
    "preview_encrypt",
    "verify_store",
]
