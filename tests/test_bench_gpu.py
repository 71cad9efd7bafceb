"""The GPU benchmark without a GPU: on a pretended device, with Triton's interpreter, small images and no real clock.

Every contender whose code can run so is run and compared; figures mean nothing. What is shown is that wrong results
are found, that the run goes on and fails, and that the script fails loudly where there is no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dlmt_fast as dlmt

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_GPU = pytest.mark.skipif(dlmt.backends.available()["cuda"] == "ok", reason="this machine has a GPU")

PRETEND = r"""
import importlib.util, sys, time, warnings
from contextlib import nullcontext
from types import SimpleNamespace
import pytest, torch
import torch._dynamo  # before torch.cuda is patched: its annotations name what stands there

warnings.simplefilter("ignore")
tests, benchmarks, output, wrong = sys.argv[1:5]
spec = importlib.util.spec_from_file_location("stand_in_cuda", tests + "/stand_in_cuda.py")
stand_in = importlib.util.module_from_spec(spec)
sys.modules["stand_in_cuda"] = stand_in
spec.loader.exec_module(stand_in)
patch = pytest.MonkeyPatch()
module = stand_in.install(patch)

class Gpu(stand_in.Gpu):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "cuda":
            return self.put(args[0].contiguous())
        if name == "randint":
            kwargs.pop("generator")
        return super().__torch_function__(func, types, args, kwargs)

gpu = Gpu(module)

class Event:
    def __init__(self, enable_timing=False): self.at = 0.0
    def record(self, stream=None): self.at = time.perf_counter()
    def synchronize(self): pass
    def elapsed_time(self, end): return (end.at - self.at) * 1e3 + 1e-3

class Graph:  # what is captured runs at once; a replay does nothing
    def replay(self): pass
    capture_begin = capture_end = replay

class Stream:
    cuda_stream = 1000

properties = SimpleNamespace(name="Pretended", major=9, minor=0, multi_processor_count=2, total_memory=1 << 30)
for name, value in {
    "Event": Event, "Stream": Stream, "synchronize": lambda: None, "_sleep": lambda cycles: None,
    "device": lambda device: nullcontext(), "current_stream": Stream, "CUDAGraph": Graph,
    "stream": lambda stream: nullcontext(),
    "get_device_properties": lambda device: properties, "empty_cache": lambda: None,
    "is_current_stream_capturing": lambda: False, "is_available": lambda: True,
}.items():
    patch.setattr(torch.cuda, name, value)
patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 1000, raising=False)
patch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
patch.setattr(torch, "compile", lambda **options: lambda function: function)

sys.path.insert(0, benchmarks)
spec = importlib.util.spec_from_file_location("bench_cuda", benchmarks + "/cuda.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
import cuda_peers
from dlmt_fast.bench import gpu as timing
shapes = {"cifar-set": (9, 3, 4, 4), "imagenet": (8, 3, 8, 8), "2048": (5, 3, 7, 9)}
patch.setattr(bench, "_SHAPES", shapes)
patch.setattr(bench, "_GRAPHS", 3)
patch.setattr(timing, "_MOST_LAUNCHES", 2)
patch.setattr(cuda_peers, "_quick", lambda run, sets: run(*sets[0]) is None)  # each size of block once
patch.setattr(cuda_peers, "FIELDS", {k: v for k, v in cuda_peers.FIELDS.items() if k not in ("cupy", "numba-cuda")})
if wrong:
    real = bench.dlmt.encrypt
    def off(images, plan, out=None, **options):
        y = real(images, plan, out=out, **options)
        if images.shape[1:] == (3, 8, 8):
            y.view(-1)[-1] += 1
        return y
    patch.setattr(cuda_peers.dlmt, "encrypt", off)
    def broken(cell, plan, sets):
        raise RuntimeError("this peer does not build")
        yield
    cuda_peers.FIELDS["torch.compile"] = broken
sys.argv = ["cuda.py", output, "--rounds", "3"]
with gpu:
    sys.exit(bench.main())
"""


def pretended(output: Path, wrong: str = "") -> subprocess.CompletedProcess[str]:
    arguments = [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(output), wrong]
    return subprocess.run(
        [sys.executable, "-c", PRETEND, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=output.parent,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_cell_and_contender(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    output = tmp_path / "cuda.jsonl"
    done = pretended(output)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(output)
    cells = [row for row in rows if "operation" in row]
    assert {(r["workload"], r["operation"]) for r in cells} == {
        (w, o) for w in ("cifar-set", "imagenet", "2048") for o in ("R u8->u8", "R u8->f32", "R u8->bf16", "M u8->u8")
    }
    for row in cells:
        assert len(row["samples_s"]) == 3
        assert row["machine"]["gpu"] == "Pretended"
    names = {r["contender"].partition(" (")[0] for r in cells}
    assert names == {
        "limit: torch copy_",
        "limit: plain kernel",
        "dlmt cuda",
        "torch eager",
        "torch.compile",
        "triton",
        "triton key-stationary",
    }
    graphs = [row for row in rows if "operation" not in row]
    assert [row["times_an_empty_launch"] for row in graphs if row["contender"] == "empty"] == [1.0]
    assert len(graphs) == 7
    text = done.stdout
    assert text.count("| cifar-set |") == 4
    assert "0 failures" in text.splitlines()[-1]


def test_what_is_wrong_fails_the_run_after_the_rest(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    output = tmp_path / "cuda.jsonl"
    done = pretended(output, "ours and a peer")
    assert done.returncode == 1
    assert "WRONG: imagenet R u8->u8, ours: Disagreement: dlmt cuda, set 0: 1 of 1536 values differ" in done.stdout
    assert "WRONG: 2048 M u8->u8, torch.compile: RuntimeError: this peer does not build" in done.stdout
    assert "| imagenet | R u8->u8 | | WRONG |" in done.stdout
    rows = rows_of(output)
    assert len({(r["workload"], r["operation"]) for r in rows if "operation" in r}) == 12
    assert not [r for r in rows if r["workload"] == "imagenet" and r["group"] == "ours"]


@WITHOUT_GPU
def test_the_benchmark_says_why_it_cannot_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda.py"), str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert dlmt.backends.available()["cuda"] in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--fast"], "unknown argument --fast"),
        (["--seconds", "soon"], "expected a whole number"),
        (["--seconds"], "--seconds needs a value"),
        (["--wheels", "/does/not/exist"], "no such folder"),
        (["--only", "everything"], "expected info, tests, sanitizer or bench"),
    ],
)
def test_the_script_refuses_what_it_does_not_know(arguments: list[str], text: str, tmp_path: Path) -> None:
    done = script(tmp_path, *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_the_script_fails_where_nvcc_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "mktemp", "mkdir", "date", "git", "tee", "timeout", "rm", "cat", "env", "tail"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    done = script(tmp_path, path=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "nvcc is not on the PATH" in done.stdout
    assert done.stdout.splitlines()[-1] == "FAILED"
    assert (tmp_path / "out" / "gpu-summary.txt").read_text().startswith("FAILED    build")


def test_results_are_never_mixed_with_older_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda.py"), str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "never mixed" in done.stderr


def test_the_script_fails_where_no_time_is_left(tmp_path: Path) -> None:
    done = script(tmp_path, "--seconds", "1")
    assert done.returncode == 1
    assert "no time is left" in done.stdout


def script(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(folder / "out")} | ({"PATH": path} if path else {})
    command = ["/usr/bin/bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)
