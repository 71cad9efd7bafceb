"""Training on images that are transformed on the fly, or on stores that `dlmt encrypt` wrote: `dlmt train`."""

from __future__ import annotations

from ..errors import missing

try:
    import torch  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise missing(error.name or "torch", "dlmt_fast.training", "train") from error

from .datasets import DATASETS, Data, Split, load_data
from .networks import FiveConvNet, ResNet18
from .options import TrainOptions
from .run import train
from .stop import TrainingStopped

__all__ = [
    "DATASETS",
    "Data",
    "FiveConvNet",
    "ResNet18",
    "Split",
    "TrainOptions",
    "TrainingStopped",
    "load_data",
    "train",
]
