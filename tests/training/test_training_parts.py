"""Batches, augmentation, measured inputs, schedule, networks and options, each alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError
from dlmt_fast.training import FiveConvNet, ResNet18, Split, TrainOptions
from dlmt_fast.training.batches import Batches, TrainKeys, augmented, choose, draws, in_order, loader, permutation
from dlmt_fast.training.inputs import Standardize, measure
from dlmt_fast.training.networks import make_network
from dlmt_fast.training.schedule import sgdr
from dlmt_fast.training.setup import equal_bits, seeded_network
from dlmt_fast.transforms import Encrypt

SCHEME = dlmt.DLMT("mat_mmt")
MakeSplit = Callable[..., Split]


# --- what the seed decides -------------------------------------------------------------------------------------------


def test_the_numbers_of_a_seed_never_change() -> None:
    """Written down once: they decide every batch, so a change would break resumed runs and equal stores."""
    assert draws(7, 3, "order", 2).tolist() == [7619040545023290255, 3366098749635922687]
    assert permutation(7, 3, "order", 8).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]
    assert permutation(7, 3, "subset", 8).tolist() != permutation(7, 3, "order", 8).tolist()


def test_an_epoch_sees_every_image_once_and_each_epoch_another_order() -> None:
    keys = TrainKeys(64, 8, seed=1)
    seen = []
    for keys.epoch in range(3):
        batches = list(keys)
        assert len(batches) == len(keys) == 8
        assert all(epoch == keys.epoch for epoch, _ in batches)
        seen.append(np.concatenate([places for _, places in batches]).tolist())
        assert sorted(seen[-1]) == list(range(64))
    assert seen[0] != seen[1] != seen[2]
    assert len(TrainKeys(67, 8, 1)) == 8


def test_from_any_step_on() -> None:
    whole, rest = TrainKeys(50, 8, seed=1), TrainKeys(50, 8, seed=1)
    rest.first = 4
    assert [p.tolist() for _, p in rest] == [p.tolist() for _, p in whole][4:]
    assert len(rest) == 2


def test_a_subset_keeps_the_order_and_follows_from_the_seed(split: MakeSplit) -> None:
    part = split(50, (1, 4, 10))
    chosen = choose(part, 3, 20)
    places = np.sort(permutation(3, 0, "subset", 50)[:20])
    assert torch.equal(chosen.images, part.images[torch.from_numpy(places)])
    assert torch.equal(chosen.labels, part.labels[torch.from_numpy(places)])
    assert choose(part, 3, 50) is part
    assert choose(part, 4, 20).labels.tolist() != chosen.labels.tolist()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning", "ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_bits(split: MakeSplit, key: dlmt.Key, workers: int, augment: str) -> None:
    def collect(count: int) -> list[torch.Tensor]:
        batches = Batches(split(40, (3, 9, 10)), Encrypt(key, SCHEME), augment, seed=2)
        keys = TrainKeys(40, 8, seed=2)
        source = loader(batches, keys, count, pin=False)
        found = []
        for keys.epoch, keys.first in ((0, 0), (1, 0), (1, 3)):
            found += [tensor for batch in source for tensor in batch]
        return found

    alone, together = collect(0), collect(workers)
    assert len(alone) == 2 * (5 + 5 + 2)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_spawned_workers_too_and_they_outlive_ctrl_c(split: MakeSplit, key: dlmt.Key) -> None:
    """A terminal's SIGINT reaches them as well, and the run may still wait for their next batch."""
    batches = Batches(split(20, (1, 9, 10)), Encrypt(key, SCHEME), "crop", seed=2)
    here, there = (loader(batches, in_order(20, 2), workers, pin=False) for workers in (0, 1))
    there.multiprocessing_context = multiprocessing.get_context("spawn")
    alone, together = list(here), iter(there)
    found = [next(together)]
    os.kill(together._workers[0].pid, signal.SIGINT)
    found += together
    assert len(found) == len(alone) == 10
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, found, strict=True))


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_augmentation_is_pad_crop_and_flip(split: MakeSplit, flip: bool) -> None:
    images = split(30, (3, 7, 10)).images.numpy()
    random = draws(1, 2, "augment", 90).reshape(30, 3)
    result = augmented(images, random, flip)
    for image, numbers, found in zip(images, random.tolist(), result, strict=True):
        top, left, mirrored = numbers[0] % 9, numbers[1] % 9, numbers[2] % 2
        expected = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, top : top + 7, left : left + 10]
        assert np.array_equal(found, expected[..., ::-1] if flip and mirrored else expected)
    assert len(np.unique(random[:, 0] % np.uint64(9))) > 5


def test_augmentation_comes_before_the_transform(split: MakeSplit, key: dlmt.Key) -> None:
    part = split(20, (3, 9, 10))
    places = np.arange(5, 17)
    images, labels = Batches(part, Encrypt(key, SCHEME), "crop-flip", seed=4)[6, places]
    plain = augmented(part.images.numpy()[places], draws(4, 6, "augment", 60).reshape(20, 3)[places], flip=True)
    plan = SCHEME.plan(key, (3, 9, 10), "range", "float32")
    assert np.array_equal(images.numpy(), dlmt.encrypt(plain, plan, backend="reference"))
    assert torch.equal(labels, part.labels[5:17])


# --- the network's input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "dtype"), [("range", "uint8"), ("none", "int32"), ("range", "float32")])
def test_inputs_have_mean_0_and_deviation_1(split: MakeSplit, key: dlmt.Key, normalize: str, dtype: str) -> None:
    train, test = (Batches(split(n, (3, 9, 10), n), Encrypt(key, SCHEME, normalize, dtype)) for n in (1500, 30))
    measured = measure(train, test)
    images = train[0, np.arange(1500)][0]
    values = images.double().numpy()
    assert np.allclose(measured.mean, values.mean((0, 2, 3)))
    assert np.allclose(measured.std, values.std((0, 2, 3)))
    x = Standardize(measured, torch.device("cpu"))(images)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.mean((0, 2, 3)).abs().max() < 1e-3
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_channel_that_never_varies_is_only_shifted(split: MakeSplit) -> None:
    part = split(20, (3, 5, 5))
    part.images[:, 1] = 77
    measured = measure(Batches(part, None), Batches(part, None))
    assert (measured.mean[1], measured.std[1]) == (77.0, 1.0)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("what", ["images", "labels"])
def test_the_digest_covers_everything(split: MakeSplit, which: int, what: str) -> None:
    def digest(change: bool) -> str:
        parts = [split(20, (1, 5, 5), seed) for seed in (0, 1)]
        if change:
            getattr(parts[which], what).view(-1)[-1] += 1
        return measure(*(Batches(part, None) for part in parts)).sha256

    assert digest(False) == digest(False) != digest(True)


# --- schedule, networks, options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cycle", "factor"), [(10, 1), (10, 2), (3, 3)])
def test_sgdr_is_torchs_own(cycle: int, factor: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, cycle, factor)
    for step in range(1, 280):
        optimizer.step()
        theirs.step(step / 4)
        assert sgdr(step / 4, 0.2, cycle, factor) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)


def test_without_restarts_the_rate_falls_to_0() -> None:
    assert sgdr(0, 0.2, 200, 1) == 0.2
    assert sgdr(100, 0.2, 200, 1) == pytest.approx(0.1)
    assert 0 < sgdr(199.999, 0.2, 200, 1) < 1e-9


def test_the_networks() -> None:
    resnet, five = ResNet18(), FiveConvNet()
    assert sum(p.numel() for p in resnet.parameters()) == 11_173_962  # as of kuangliu/pytorch-cifar
    assert sum(isinstance(layer, nn.Conv2d) for layer in five.modules()) == 5
    assert not [layer for layer in resnet.modules() if isinstance(layer, nn.MaxPool2d)]
    assert next(layer for layer in resnet.modules() if isinstance(layer, nn.Conv2d)).kernel_size == (3, 3)
    with torch.inference_mode():
        assert ResNet18(1, 7, width=8).eval()(torch.zeros(2, 1, 16, 8)).shape == (2, 7)
        assert five.eval()(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
        assert FiveConvNet(3, 4).eval()(torch.zeros(1, 3, 4, 4)).shape == (1, 4)


def test_weights_follow_from_the_seed_and_torchs_generator_stays() -> None:
    before = torch.get_rng_state()
    a, b, c = (seeded_network("fiveconv", 1, 10, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["classify.weight"], c["classify.weight"])
    with pytest.raises(ParameterError, match="resnet18"):
        make_network("vgg", 3, 10)


def test_torchs_switches_are_put_back() -> None:
    def switches() -> tuple[bool, bool, bool]:
        deterministic: Any = torch.utils.deterministic
        enabled = torch.are_deterministic_algorithms_enabled()
        return enabled, deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark

    torch.backends.cudnn.benchmark = True
    before = switches()
    with equal_bits(True, torch.device("cpu")):
        assert switches() == (True, False, False)
    assert switches() == before
    with equal_bits(False, torch.device("cpu")):
        assert switches() == before
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize(
    "options",
    [
        {"network": "vgg"},
        {"augment": "flip"},
        {"device": "tpu"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 1},
        {"batch_size": True},
        {"seed": -1},
        {"subset": 0},
        {"cycle": 0},
        {"cycle_factor": 0},
        {"workers": -1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": -0.1},
        {"weight_decay": float("inf")},
    ],
    ids=str,
)
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        TrainOptions(**options)
