"""The training loop: SGD with SGDR, one state that a checkpoint holds whole, a pass over the test images an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from ..errors import DlmtError
from .batches import Batch, TrainKeys
from .inputs import Standardize
from .options import TrainOptions
from .schedule import sgdr
from .stop import StopRequest

Progress = Callable[[int, int], None]


class DivergedError(DlmtError):
    """The loss became infinite or no number."""


class Loop:
    """A network in training.

    Attributes:
        epoch, step: how many epochs, and steps of the next one, are done.
        history: a row an epoch, see `log.COLUMNS`.
    """

    def __init__(
        self, network: nn.Module, prepare: Standardize, options: TrainOptions, device: torch.device, steps: int
    ) -> None:
        self._network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward = torch.compile(self._network) if options.compile else self._network
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        self._prepare, self._options, self._device, self._steps = prepare, options, device, steps
        self.epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._totals = torch.zeros(2, dtype=torch.float64, device=self._device)  # loss, right answers
        self._seconds = 0.0

    def state(self) -> dict[str, Any]:
        """Everything that decides what comes next; nothing random is left, since all draws follow from the seed."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "totals": self._totals.cpu(),
            "seconds": self._seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], list(state["history"])
        self._totals, self._seconds = state["totals"].to(self._device), state["seconds"]

    def run_epoch(
        self,
        train: DataLoader[Batch],
        keys: TrainKeys,
        test: DataLoader[Batch],
        stop: StopRequest,
        progress: Progress,
    ) -> bool:
        """Finish the epoch that `epoch` and `step` stand in. Returns whether it was finished, and not stopped.

        Raises:
            DivergedError: the loss is no number any more.
        """
        if not self._train(train, keys, stop, progress):
            return False
        loss, accuracy = (self._totals / (self._steps * self._options.batch_size)).tolist()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of epoch {self.epoch + 1} is {loss}; try a smaller --lr than {self._options.lr}"
            )
        tested = self._test(test, stop)
        if tested is None:
            return False
        images = self._steps * self._options.batch_size
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "lr": self._rate(self.epoch),
                "train_loss": loss,
                "train_accuracy": accuracy,
                "test_loss": tested[0],
                "test_accuracy": tested[1],
                "seconds": round(self._seconds, 3),
                "images_per_second": round(images / self._seconds, 1),
            }
        )
        self.epoch, self.step = self.epoch + 1, 0
        self._begin_epoch()
        return True

    def _train(self, train: DataLoader[Batch], keys: TrainKeys, stop: StopRequest, progress: Progress) -> bool:
        """The steps of this epoch that are left."""
        keys.epoch, keys.first = self.epoch, self.step
        started = time.perf_counter() - self._seconds
        self._network.train()
        for images, labels in train if len(keys) else ():
            self._train_step(images, labels)
            self.step += 1
            self._seconds = time.perf_counter() - started
            progress(self.epoch * self._steps + self.step, self._options.epochs * self._steps)
            if stop.asked:
                return False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._seconds = time.perf_counter() - started
        return True

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._options.amp)

    def _rate(self, epochs_done: float) -> float:
        options = self._options
        return sgdr(epochs_done, options.lr, options.cycle or options.epochs, options.cycle_factor)

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self.epoch + self.step / self._steps)
        labels = labels.to(self._device, non_blocking=True)
        with self._autocast():
            logits = self._forward(self._prepare(images))
            loss = cross_entropy(logits.float(), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._totals[0] += loss.detach().double() * len(labels)
        self._totals[1] += (logits.detach().argmax(1) == labels).sum()

    def _test(self, test: DataLoader[Batch], stop: StopRequest) -> tuple[float, float] | None:
        """(mean loss, accuracy) over all test images; None where it was stopped."""
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        count = 0
        self._network.eval()
        with torch.inference_mode(), self._autocast():
            for images, labels in test:
                labels = labels.to(self._device, non_blocking=True)
                logits = self._forward(self._prepare(images)).float()
                totals[0] += cross_entropy(logits, labels, reduction="sum").double()
                totals[1] += (logits.argmax(1) == labels).sum()
                count += len(labels)
                if stop.asked:
                    return None
        loss, accuracy = (totals / count).tolist()
        return loss, accuracy
