"""The options of a training run, checked, and which of them a resumed run must share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ParameterError

AUGMENTS = ("none", "crop", "crop-flip")
NETWORKS = ("auto", "fiveconv", "resnet18")
DEVICES = ("auto", "cpu", "cuda")
#: What changes neither the batches nor the arithmetic, so that a resumed run may change it.
_FREE = ("device", "workers", "check")


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the paper's where it says: SGDR from 0.2 to 0 over 200 epochs.

    What it leaves open (batch size, momentum, weight decay) is that of kuangliu/pytorch-cifar, on which its code is
    based.

    Attributes:
        network: "fiveconv", "resnet18", or "auto", which takes the data set's own.
        epochs, batch_size: an epoch drops the images that do not fill its last batch, others each time.
        lr, momentum, weight_decay: of SGD; `lr` is where every cycle of SGDR begins.
        cycle: epochs of SGDR's first cycle; None takes all epochs, so that there is no restart.
        cycle_factor: each cycle lasts so many times the one before.
        seed: of the weights, the order of the images, the augmentation, the subset, and the calls to check.
        subset: train on so many images, and test on at most so many, chosen by the seed; None takes all.
        augment: "none", "crop" (4 pixels of padding, then a crop at a random place) or "crop-flip"; always before the
            transform, as the owner would.
        normalize, dtype: of the transform, as for `scheme.plan`. dtype None means uint8, as in stores ("none": int32).
        check: compare this share of the transform's calls with the reference, or "all"; see `transforms.Encrypt`.
        device: "cpu", "cuda", or "auto": CUDA where there is one.
        workers: processes that prepare batches; 0 prepares them in this one. The batches are the same.
        amp: bfloat16 autocast. compile: torch.compile.
        deterministic: the same bits each time on the same machine; costs some speed on CUDA.

    Raises:
        ParameterError: a value means nothing.
    """

    network: str = "auto"
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    cycle: int | None = None
    cycle_factor: int = 1
    seed: int = 0
    subset: int | None = None
    augment: str = "none"
    normalize: str = "range"
    dtype: str | None = None
    check: float | str | None = None
    device: str = "auto"
    workers: int = 0
    amp: bool = False
    compile: bool = False
    deterministic: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("network", NETWORKS), ("augment", AUGMENTS), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise ParameterError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        least = {"epochs": 1, "batch_size": 2, "cycle": 1, "cycle_factor": 1, "seed": 0, "subset": 2, "workers": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is None and name in ("cycle", "subset"):
                continue
            if type(value) is not int or value < smallest:
                raise ParameterError(f"{name} must be an integer of at least {smallest}, got {value!r}")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
                raise ParameterError(
                    f"{name} must be finite and {'over' if name == 'lr' else 'at least'} 0, got {value!r}"
                )

    def recorded(self) -> dict[str, Any]:
        """What decides the numbers: a resumed run must have the same."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}
