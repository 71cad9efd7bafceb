"""The share of a training step that the transform takes: the batch transformed, then forward, backward and SGD's step.

python benchmarks/step_share.py benchmarks/results/step_share.jsonl [--device cuda] [--rounds 7]

Transform and step take turns in every round, on the same device and threads; a figure is the median over the rounds.
The share is the transform's time over the step's, as if nothing overlapped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import dlmt_fast as dlmt
from dlmt_fast.bench import machine
from dlmt_fast.functional import runs_on
from dlmt_fast.training.networks import make_network
from dlmt_fast.transforms import Encrypt

CASES = (("resnet18", (3, 32, 32)), ("fiveconv", (1, 28, 28)))
OUTPUTS = (("range", "uint8"), ("range", "float32"), ("minmax", "uint8"))


def training_step(name: str, images: Tensor, amp: bool) -> Callable[[], None]:
    """One step on this batch, as `dlmt train` makes it."""
    device = images.device
    network = make_network(name, images.shape[1], 10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    labels = torch.arange(len(images), device=device) % 10

    def step() -> None:
        x = images.to(torch.float32).sub(128).div_(64).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            loss = torch.nn.functional.cross_entropy(network(x).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def seconds(work: Callable[[], Any], device: torch.device, least: float) -> float:
    """Of one call, from as many as last `least` seconds; on CUDA until the device is done."""
    calls, started = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        if time.perf_counter() - started >= least or calls >= 1000:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / calls


def case(name: str, images: Tensor, amp: bool, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each output of the transform."""
    works: dict[str, Callable[[], Any]] = {"step": training_step(name, images, amp)}
    for normalize, dtype in OUTPUTS:
        transform = Encrypt(dlmt.Key.generate(), dlmt.DLMT("mat_mmt"), normalize, dtype)
        works[f"{normalize} {dtype}"] = partial(transform, images)
    samples: dict[str, list[float]] = {work: [] for work in works}
    for call in works.values():
        call()
    for _ in range(rounds):
        for work, call in works.items():
            samples[work].append(seconds(call, images.device, 0.02))
    step = median(samples["step"])
    for work in list(works)[1:]:
        took = median(samples[work])
        text = (
            f"{name} {'bf16' if amp else 'fp32'} {work}: {took * 1e6:.0f} us of {step * 1e3:.2f} ms, {took / step:.4%}"
        )
        print(text, file=sys.stderr, flush=True)
        yield {
            "network": name,
            "shape": list(images.shape),
            "amp": amp,
            "transform": work,
            "share": took / step,
            "transform_s": took,
            "step_s": step,
            "rounds": rounds,
            "transform_samples_s": samples[work],
            "step_samples_s": samples["step"],
            "threads": torch.get_num_threads(),
            "runs_on": list(runs_on(images)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines; must not exist")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists; results are never mixed with older ones")
    facts = machine.describe()
    if given.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    with open(given.output, "w", encoding="utf-8") as file:
        for name, shape in CASES:
            images = torch.randint(0, 256, (given.batch, *shape), dtype=torch.uint8, device=given.device)
            for amp in (False, True):
                for row in case(name, images, amp, given.rounds):
                    file.write(json.dumps(row | {"machine": facts}) + "\n")


if __name__ == "__main__":
    main()
