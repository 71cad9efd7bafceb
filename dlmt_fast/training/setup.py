"""What a run starts from: the transform that fits data and options, the device, and torch's switches for equal bits."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision

from .. import backends
from .._version import __version__
from ..errors import BackendError, UsageError
from ..keys import Key
from ..schemes import DLMT
from ..transforms import Encrypt
from .datasets import DATASETS, Data
from .networks import make_network
from .options import TrainOptions


def make_transform(data: Data, options: TrainOptions, key: Key | None, scheme: DLMT | None) -> Encrypt | None:
    """The transform of a run's images; None where they stay as they are.

    Raises:
        UsageError: data, options and key do not fit.
    """
    if (key is None) != (scheme is None):
        raise UsageError(
            "key and scheme go together: both for images to transform, neither for a store or plain images"
        )
    if key is not None and scheme is not None and not data.transformed:
        dtype = options.dtype if options.dtype is not None or options.normalize == "none" else "uint8"
        return Encrypt(key, scheme, options.normalize, dtype, check=options.check, check_seed=options.seed)
    if data.transformed and key is not None:
        raise UsageError(
            "these images are a store's, transformed already: train without --key, --mode and its parameters"
        )
    if data.transformed and options.augment != "none":
        raise UsageError(
            "augmentation comes before the transform, as the owner does it: a shifted or mirrored image of a store "
            "would no longer fit the secret matrices. Train on the plain images with --key, or with --augment none"
        )
    if (options.check, options.normalize, options.dtype) != (None, "range", None):
        what = "a store's images are transformed already" if data.transformed else "there is no key"
        raise UsageError(f"--check, --normalize and --dtype are about the transform, and {what}; leave them out")
    return None


def describe_transform(data: Data, options: TrainOptions, key: Key | None, scheme: DLMT | None) -> Any:
    """The transform in a log: "store", "plain", or scheme, output and the key's fingerprint."""
    if key is None or scheme is None:
        return "store" if data.transformed else "plain"
    output = {"normalize": options.normalize, "dtype": options.dtype}
    return {"scheme": scheme.params, **output, "key_fingerprint": key.fingerprint}


def settings_of(data: Data, options: TrainOptions, key: Key | None, scheme: DLMT | None) -> dict[str, Any]:
    """What decides a run's numbers, beside the images themselves; for the log and the checkpoint."""
    settings = {"dataset": data.name, **options.recorded()}
    del settings["normalize"], settings["dtype"]
    if options.network == "auto":
        settings["network"] = DATASETS[data.name].network
    return settings | {"transform": describe_transform(data, options, key, scheme)}


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        BackendError: "cuda" where torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device here; --device cpu trains without one")
    return torch.device(name)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What, beside the settings, the last bits of a run can depend on."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "dlmt_fast": __version__,
        "backend": backends.auto().name,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # of a class of its own, which no plain checkpoint holds
        "torchvision": str(torchvision.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {capability}",
        "threads": torch.get_num_threads(),
    }


def seeded_network(name: str, channels: int, classes: int, seed: int) -> torch.nn.Module:
    """A network whose first weights follow from the seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make_network(name, channels, classes)


@contextmanager
def equal_bits(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let torch use only algorithms that give the same bits each time; its switches are put back."""
    if not wanted:
        yield
        return
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses cuBLAS without it
    switches: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switches.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False  # it costs time, and nothing here reads what nobody wrote
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        switches.fill_uninitialized_memory = before[1]
        torch.backends.cudnn.benchmark = benchmark
