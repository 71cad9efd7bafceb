"""Shell completion: the scripts, and what the shells then ask for through the environment."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlmt_fast.cli import completion
from dlmt_fast.cli.entry import app
from dlmt_fast.pipeline.formats import KINDS as WRITTEN
from dlmt_fast.pipeline.open import KINDS as READ
from dlmt_fast.schemes.dlmt import MODES
from dlmt_fast.schemes.plan import NORMALIZATIONS

PROGRAM = "import sys; sys.argv[0] = 'dlmt'; from dlmt_fast.cli import main; main()"


def dlmt(cwd: Path, *words: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def completions(cwd: Path, line: str) -> list[str]:
    """What bash is given at the end of a line."""
    words = line.split(" ")
    return dlmt(cwd, _DLMT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)).split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dlmt enc", ["encrypt"]),
        ("dlmt ins", ["inspect"]),
        ("dlmt encrypt a b --duplicates ", ["report", "drop"]),
        ("dlmt encrypt a b --normalize m", ["minmax", "minmax_channel"]),
        ("dlmt encrypt a b --from ", list(READ)),
        ("dlmt keygen --mode mat", ["mat", "mat_mmt"]),
        ("dlmt encrypt a --resu", ["--resume"]),
        ("dlmt encrypt a", []),  # the shell completes paths
    ],
)
def test_bash_asks(line: str, expected: list[str], tmp_path: Path) -> None:
    assert completions(tmp_path, line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_call_the_command(shell: str, tmp_path: Path) -> None:
    script = dlmt(tmp_path, _DLMT_COMPLETE=f"source_{shell}")
    assert f"_DLMT_COMPLETE=complete_{shell}" in script
    begin = {"bash": "_dlmt_completion()", "zsh": "#compdef dlmt", "fish": "complete --command dlmt"}[shell]
    assert script.strip().startswith(begin)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path: Path) -> None:
    """The script that `--show-completion` prints in bash, sourced, with a word to be completed."""
    (tmp_path / "dlmt").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{PROGRAM}" "$@"\n')
    (tmp_path / "dlmt").chmod(0o755)
    text = """
        export PATH="$PWD:$PATH"
        eval "$(dlmt --show-completion; :)"
        complete -p dlmt
        COMP_WORDS=(dlmt encrypt a b --on-error q); COMP_CWORD=5
        _dlmt_completion dlmt
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("complete -o default -F _dlmt_completion dlmt\nquarantine\n", "")


def test_the_values_are_those_that_the_package_takes() -> None:
    values = {name: set(found) for name, found in completion.VALUES.items()}
    assert values["mode"] == set(MODES)
    assert values["normalize"] == set(NORMALIZATIONS)
    assert set(completion.KINDS["from_kind"]()) == set(READ)
    assert set(completion.KINDS["to_kind"]()) == set(WRITTEN)
    from dlmt_fast.cli.progress import MODES as SHOWN
    from dlmt_fast.pipeline.options import FITS

    assert (values["fit"], values["progress_mode"]) == (set(FITS), set(SHOWN))
    options = pytest.importorskip("dlmt_fast.training.options", exc_type=ImportError)
    datasets = pytest.importorskip("dlmt_fast.training.datasets", exc_type=ImportError)
    assert values["network"] == set(options.NETWORKS)
    assert values["augment"] == set(options.AUGMENTS)
    assert values["device"] == set(options.DEVICES)
    assert values["dataset"] == set(datasets.DATASETS)


def test_every_value_belongs_to_an_option() -> None:
    taken = {name for command in app.registered_commands for name in inspect.signature(command.callback).parameters}
    assert not set(completion.VALUES) - taken
