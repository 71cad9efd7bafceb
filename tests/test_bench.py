"""The benchmark harness: equality comes before timing, ratios are of one run, results survive a round trip."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dlmt_fast.bench import OPERATIONS, Contender, Workload, machine, measure, report
from dlmt_fast.bench.contenders import installed_contenders, limits
from dlmt_fast.bench.harness import Disagreement
from dlmt_fast.bench.run import run

TINY = Workload("tiny", (5, 3, 6, 7))
ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    """A file of benchmarks/, which is not installed."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_rows(threads: int = 1) -> list[dict[str, Any]]:
    parts = run([TINY], [threads], 3, 5.0, lambda text: None)
    return [row.as_dict() for part in parts for row in part]


@pytest.mark.parametrize("threads", [1, 2])
def test_every_contender_agrees_and_is_timed(threads: int) -> None:
    rows = tiny_rows(threads)
    assert {row["operation"] for row in rows} == set(OPERATIONS)
    assert {row["group"] for row in rows} == {"limit", "ours", "peer"}
    for row in rows:
        assert row["rounds"] == len(row["samples_s"]) >= 1
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
        assert row["share_of_limit"] == pytest.approx(row["limit_s"] / row["median_s"])
        assert row["limit_s"] == min(
            r["median_s"] for r in rows if r["operation"] == row["operation"] and r["group"] == "limit"
        )


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_our_backends_must_give_the_reference_bits(operation: Any) -> None:
    found = installed_contenders(TINY, operation, TINY.images(), 1)
    assert [c.agreement for c in found if c.group == "ours"] == ["equal", "equal"]


@pytest.mark.parametrize(("agreement", "off"), [("equal", 1), ("1 level", 2)])
def test_a_wrong_contender_is_not_timed(agreement: str, off: int) -> None:
    images, operation = TINY.images(), OPERATIONS["R u8->u8"]
    plan = operation.plan(TINY)
    k = plan.coefficients("CHW")
    assert k.M24 is not None
    assert k.B24 is not None
    y = ((images.reshape(5, *k.M.shape).astype(np.uint32) * k.M24 + k.B24) >> 24).astype(np.uint8).reshape(TINY.shape)
    right = Contender("right", "peer", lambda: None, lambda: y, agreement)
    wrong = y.copy()
    wrong[4, 2, 5, 6] += np.uint8(off)
    bad = Contender("wrong", "peer", lambda: None, lambda: wrong, agreement)
    field = list(limits(operation, images, 1))
    measure(TINY, operation, [*field, right], images, 1, rounds=1)
    with pytest.raises(Disagreement, match="wrong differs at"):
        measure(TINY, operation, [*field, right, bad], images, 1, rounds=1)


def test_limits_move_the_bytes() -> None:
    images = TINY.images()
    for operation in OPERATIONS.values():
        for contender in limits(operation, images, 1):
            assert isinstance(contender.call, partial)
            contender.call()
            moved = [a for a in (*contender.call.args, *contender.call.keywords.values()) if isinstance(a, np.ndarray)]
            out = next(a for a in moved if a is not images)
            assert out.dtype == np.dtype(operation.dtype)
            assert (out == images).all()


def test_results_survive_a_round_trip_and_compare(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    parts = list(run([TINY], [1], 2, 5.0, lambda text: None))
    for part in parts:
        report.write_rows(file, part, machine.describe())
    rows = report.read_rows(file)
    assert len(rows) == sum(map(len, parts))
    assert all(row["machine"]["cpus"] >= 1 for row in rows)
    assert "dlmt native" in report.table(rows)
    slower = [row | {"share_of_limit": row["share_of_limit"] / 2} for row in rows[:-1]]
    text = script("compare").compare(rows, slower)
    assert text.count("| 0.50 |") == len(rows) - 1
    assert "1 cases are in one file alone" in text


def test_the_readme_table_comes_from_a_file(tmp_path: Path) -> None:
    rows = [row | {"machine": machine.describe()} for row in tiny_rows()]
    text = script("readme").section(rows, Path("benchmarks/results/x.jsonl"))
    assert "| best peer |" in text
    assert "benchmarks/results/x.jsonl" in text


@pytest.mark.long
def test_whole_jobs_are_compared_and_timed(tmp_path: Path) -> None:
    """Of a few small photographs: equal pixels, a row a contender, a table."""
    pytest.importorskip("skimage")
    command = [sys.executable, str(ROOT / "benchmarks" / "stores.py"), str(tmp_path / "rows.jsonl"), "--data"]
    options = [str(tmp_path / "data"), "--cell", "jpeg-224", "--share", "0.01", "--rounds", "1", "--script-rounds", "1"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    rows = [row for row in report.read_rows(tmp_path / "rows.jsonl") if row["workload"].startswith("jpeg-224, ")]
    assert [row["contender"] for row in rows][:2] == ["dlmt encrypt", "the same without the transform"]
    assert len(rows) == 4
    table = script("readme").stores_section(rows, Path("benchmarks/results/x.jsonl"))
    assert table.splitlines()[-1].startswith("| 40 x jpeg-224, ")
    assert table.count("times as long") == 2


@pytest.mark.long
def test_bench_quick_prints_one_json_object() -> None:
    command = Path(sys.executable).with_name("dlmt")
    done = subprocess.run([command, "bench", "--quick", "--json"], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert {row["group"] for row in facts["rows"]} >= {"limit", "ours", "peer"}
