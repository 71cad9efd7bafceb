"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FASHION = Path("/usr/share/datasets/fashion-mnist")
#: What takes long is made shorter here: 2000 of the 20000 images that the training example learns from.
REDUCED = ("range(20_000)", "range(2_000)")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def example_id(code: str) -> str:
    return code.splitlines()[-1][:40]


@pytest.mark.parametrize("code", EXAMPLES, ids=example_id)
def test_example(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trains = str(FASHION) in code
    if trains and not FASHION.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    exec(compile(code.replace(*REDUCED), "README.md", "exec"), {"__name__": "__main__"})
    if trains:
        printed = re.compile(r"accuracy \d+\.\d%; checked [1-9]\d* of \d+ calls, [1-9]\d* values compared, 0 differ\n")
        assert printed.fullmatch(capsys.readouterr().out)


def test_the_training_example_is_short() -> None:
    (code,) = [code for code in EXAMPLES if str(FASHION) in code]
    assert len(code.splitlines()) <= 15
    assert code.count(REDUCED[0]) == 1
