"""The transform in DataLoader's workers and in distributed training: the same bits, no deadlock, and no key on show."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import FakeData  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from dlmt_fast.transforms import Encrypt  # noqa: E402

SCHEME = dlmt.DLMT("mat_mmt")
SIZE = 11

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator:UserWarning"),
]


def images_of(transform: Any) -> FakeData:
    """A small data set of PIL images."""
    return FakeData(size=SIZE, image_size=(3, 16, 12), num_classes=4, transform=transform)


def expected(key: dlmt.Key) -> torch.Tensor:
    plain = images_of(v2.PILToTensor())
    images = torch.stack([plain[i][0] for i in range(SIZE)])
    return dlmt.encrypt(images, SCHEME.plan(key, (3, 16, 12), dtype="float32"), backend="reference")


# --- DataLoader ------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """All processes that this one started, and those that they started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [inner for child in found for inner in descendants(child)]


def on_show(pid: int) -> bytes:
    """What `ps` and others may read of a process: its command line and environment. Empty where it has ended."""
    try:
        return b"\n".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    except (FileNotFoundError, ProcessLookupError):
        return b""


def spellings(secret: bytes) -> list[bytes]:
    hexadecimal = secret.hex().encode()
    return [secret, hexadecimal, hexadecimal.upper(), base64.b64encode(secret)[:40], repr(secret)[2:-1].encode()]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc here")
@pytest.mark.parametrize("context", multiprocessing.get_all_start_methods())
def test_workers_give_the_same_bits_and_show_no_key(context: str, secret: bytes) -> None:
    """Persistent workers, two epochs, pinned memory where there is a GPU, after the parent itself has used threads."""
    key = dlmt.Key(secret)
    transform = v2.Compose([v2.ToImage(), Encrypt(key, SCHEME), v2.ToPureTensor()])
    many = torch.zeros((300, 3, 64, 64), dtype=torch.uint8)
    dlmt.encrypt(many, SCHEME.plan(key, (3, 64, 64)), threads=2)
    loader = DataLoader(
        images_of(transform),
        batch_size=4,
        num_workers=2,
        multiprocessing_context=context,
        persistent_workers=True,
        pin_memory=True,
        timeout=120,
    )
    want = expected(key)
    seen: set[int] = set()
    for _ in range(2):
        batches = []
        for images, _ in loader:
            assert images.is_pinned() == torch.cuda.is_available()
            batches.append(images)
            seen |= set(descendants(os.getpid()))
            workers = [worker.pid for worker in loader._iterator._workers]
            assert all(on_show(pid) for pid in workers), "they live on"
            assert not [text for pid in seen for text in spellings(secret) if text in on_show(pid)]
        assert torch.equal(torch.cat(batches), want)
        assert set(workers) <= seen
    assert len(set(workers)) == 2


def test_the_search_would_find_a_key(secret: bytes) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    for arguments, environment in (([secret.hex()], {}), ([], {"KEY": base64.b64encode(secret).decode()})):
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in descendants(os.getpid())
        assert [text for text in spellings(secret) if text in on_show(child.pid)]
        child.communicate(timeout=60)


def test_a_batch_that_the_collator_transforms(key: dlmt.Key) -> None:
    """After stacking, as torchvision's CutMix is used: one call a batch."""
    transform = Encrypt(key, SCHEME)
    loader = DataLoader(images_of(v2.PILToTensor()), 4, collate_fn=Collate(transform))
    assert torch.equal(torch.cat([images for images, _ in loader]), expected(key))


class Collate:
    """Stacks, then transforms."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, samples: list[Any]) -> Any:
        return self.transform(torch.utils.data.default_collate(samples))


# --- threads ---------------------------------------------------------------------------------------------------------

THREADS = """
import os, sys
import torch
import dlmt_fast as dlmt
from dlmt_fast.transforms import Encrypt
transform = Encrypt(dlmt.Key(bytes(range(32))), dlmt.DLMT())
images = torch.randint(0, 256, (200, 3, 64, 64), dtype=torch.uint8)
counts, results = [], []
for threads in (1, 3):
    torch.set_num_threads(threads)
    before = len(os.listdir("/proc/self/task"))
    results.append(transform(images))
    counts.append(len(os.listdir("/proc/self/task")) - before)
print(counts, torch.equal(*results))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc here")
@pytest.mark.skipif(dlmt.backends.available()["native"] != "ok", reason="counts the native backend's threads")
def test_torchs_number_of_threads_is_obeyed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.stdout.strip() == "[0, 2] True", done.stderr


# --- distributed training --------------------------------------------------------------------------------------------

TRAIN = """
import gc, hashlib, json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets import FakeData
from torchvision.transforms import v2
import dlmt_fast as dlmt
from dlmt_fast.transforms import Encrypt

rank, meeting, where = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
encrypt = Encrypt(dlmt.Key(bytes(range(32))), dlmt.DLMT(), mean=0.5, std=0.25, check="all")
steps = [v2.PILToTensor()] + ([encrypt] if where == "loader" else [])
data = FakeData(size=16, image_size=(3, 16, 12), num_classes=4, transform=v2.Compose(steps))
sampler = DistributedSampler(data, shuffle=True, seed=3)
loader = DataLoader(data, 4, sampler=sampler, num_workers=1 if where == "loader" else 0)
torch.manual_seed(0)
layers = [encrypt] * (where == "module")
layers += [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(560, 4)]
model = DistributedDataParallel(torch.nn.Sequential(*layers))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
losses = []
for epoch in range(2):
    sampler.set_epoch(epoch)
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
report = encrypt.close_check()
print(json.dumps({"digest": digest, "losses": losses, "values": report.values, "differ": report.differ}), flush=True)
# The model holds the process group: only without it do gloo's threads end here. One that still held a tensor while the
# interpreter ended would abort the process (pytorch/pytorch issue 190489).
del model, optimizer, loss, images, labels
gc.collect()
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_distributed_training_on_two_processes(tmp_path: Path, secret: bytes) -> None:
    """In the loader and as the first layer: the weights are the same, bit for bit, on both ranks and both ways."""
    digests, losses = set(), {}
    for where in ("loader", "module"):
        command = [sys.executable, "-c", TRAIN]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(tmp_path / where), where],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,  # not the checkout, which -c would import
            )
            for rank in range(2)
        ]
        for rank, process in enumerate(ranks):
            try:
                out, err = process.communicate(timeout=300)
            finally:
                process.kill()
            assert process.returncode == 0, out + err
            assert secret.hex() not in out + err
            got = json.loads(out)
            digests.add(got["digest"])
            losses[where, rank] = got["losses"]
            assert got["values"] == 2 * 8 * 3 * 16 * 12
            assert got["differ"] == 0
    assert len(digests) == 1
    assert losses["loader", 0] == losses["module", 0] != losses["loader", 1] == losses["module", 1]
    assert np.isfinite(list(losses.values())).all()
