"""`dlmt info`, `dlmt bench`, `dlmt demo`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import Json
from .shared import answer, console


def info(as_json: Json = False) -> None:
    """Show the version, the backends of this machine and why one is missing."""
    from ..info import collect, describe

    facts = collect()
    answer(facts, as_json, describe(facts))


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller workloads, under a minute.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Also append the rows to this file, one JSON object a line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: our backends beside its own limit and the peers that are installed."""
    from ..bench import QUICK, WORKLOADS, machine, report
    from ..bench.run import all_threads, run

    workloads, rounds, budget = (QUICK, 9, 1.5) if quick else (WORKLOADS, 15, 15.0)
    facts = machine.describe()
    rows = []
    for part in run(workloads.values(), all_threads(), rounds, budget, lambda text: console().print(text)):
        rows += part
        if output is not None:
            report.write_rows(output, part, facts)
    plain = [row.as_dict() for row in rows]
    answer({"machine": facts, "rows": plain}, as_json, f"{facts['cpu']}\n\n{report.table(plain)}\n\n{report.LEGEND}")


def demo(
    images: Annotated[Path | None, typer.Option(help="A folder of photographs (default: scikit-image's).")] = None,
    output: Annotated[Path, typer.Option(help="Where the demo's files go.")] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Photographs -> key -> encrypt -> verify -> decrypt, with the measured errors and speed, and a picture."""
    from ..demo import run_demo

    facts = run_demo(images, output, partial(print, file=sys.stderr if as_json else sys.stdout, flush=True))
    if as_json:
        answer(facts, as_json, "")
