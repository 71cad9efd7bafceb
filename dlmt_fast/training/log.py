"""What a run leaves to read: `log.csv` and `log.json`, rewritten after each epoch, and `curve.png` at its end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import missing
from ..stores.publish import publish_bytes

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "seconds",
    "images_per_second",
)


def write_log(folder: Path, facts: Mapping[str, Any]) -> None:
    """`log.csv`, one row for each of the run's `epochs`, and `log.json` with all of its facts.

    Accuracies are shares of 1, losses the mean cross entropy in nats; train figures are those of the network in
    training, over the epoch.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts["epochs"])
    _publish(folder / "log.csv", table.getvalue())
    _publish(folder / "log.json", json.dumps(facts, indent=1) + "\n")


def _publish(path: Path, text: str) -> None:
    publish_bytes(path, text.encode("utf-8"), "log", mode=0o644)


def require_plotting() -> None:
    """Refuse a run whose curve could not be drawn at its end.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing("matplotlib", "the curve of a training run", "train") from None


def draw_curve(path: Path, title: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Loss and accuracy over the epochs, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    epochs = [row["epoch"] for row in history]
    for axes, name, scale in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), strict=True):
        for part in ("train", "test"):
            axes.plot(epochs, [scale * row[f"{part}_{name}"] for row in history], marker=".", label=part)
        axes.set_xlabel("epoch")
        axes.set_ylabel("cross entropy" if name == "loss" else "accuracy in %")
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    publish_bytes(path, buffer.getvalue(), "curve", mode=0o644)
