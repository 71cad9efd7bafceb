"""Fast, exact DLMT image transforms for outsourced deep learning.

    >>> import numpy as np, dlmt_fast as dlmt
    >>> key = dlmt.Key.generate()
    >>> plan = dlmt.DLMT("mat_mmt").plan(key, shape=(3, 32, 32), normalize="none")
    >>> images = np.zeros((8, 3, 32, 32), np.uint8)
    >>> bool((dlmt.decrypt(dlmt.encrypt(images, plan), plan) == images).all())
    True

Importing the package loads NumPy only; torch, Numba and the rest load at first use.
"""

from . import backends, errors, keys
from ._version import __version__
from .functional import decrypt, encrypt
from .keys import Key
from .schemes import DLMT, Plan

__all__ = ["DLMT", "Key", "Plan", "__version__", "backends", "decrypt", "encrypt", "errors", "keys"]
