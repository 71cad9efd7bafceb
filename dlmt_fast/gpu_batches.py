"""Batches in main memory, transformed on a GPU and brought back, for who asks for it by name: `encrypt --device cuda`.

`functional.encrypt` itself never copies between main memory and a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .errors import BackendError, missing
from .functional import encrypt
from .schemes.plan import Plan


class GpuBatches:
    """Transforms NumPy batches on a device, one at a time: the same bits as on the CPU. It holds no key.

    Args:
        device: "cuda", or "cuda:1" for the second one.

    Raises:
        BackendError: CUDA cannot run here, torch is missing or has no CUDA, or there is no such device.
    """

    def __init__(self, device: str) -> None:
        wanted = f"device {device}"
        backends.get("cuda")
        try:
            import torch
        except ModuleNotFoundError:
            raise missing("torch", wanted, "torch") from None
        if not torch.cuda.is_available():
            raise BackendError(
                f"{wanted}: torch {torch.__version__} finds no CUDA device (a build without CUDA, or no driver that it "
                "can use); install torch for CUDA, or use the device cpu"
            )
        self._device, count = torch.device(device), torch.cuda.device_count()
        if (self._device.index or 0) >= count:
            raise BackendError(f"{wanted}: there are {count} CUDA devices here, counted from 0")

    def encrypt(self, images: NDArray[np.uint8], plan: Plan) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Transform uint8 images (N, C, H, W); gives what `functional.encrypt` gives with `return_bounds`.

        Both copies go through pinned memory, and the call waits for them; the result lies there, as the images lie in
        theirs.
        """
        import torch

        source = torch.from_numpy(images if images.flags.writeable else images.copy("K"))
        given, bounds = encrypt(source.pin_memory().to(self._device, non_blocking=True), plan, return_bounds=True)
        result = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, pin_memory=True)
        result.copy_(given, non_blocking=True)
        found = bounds.cpu()
        torch.cuda.current_stream(self._device).synchronize()
        return result.numpy(), found.numpy()
