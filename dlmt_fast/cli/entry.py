"""The console entry point: the commands, and errors as one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 done but with quarantined inputs,
130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import NoReturn

import typer

from ..errors import DlmtError, ParameterError, UsageError
from .completion import completed
from .encrypt import encrypt
from .inspection import inspect
from .keys import keygen
from .shared import Stopped, console, stopped_by_signals
from .stores import decrypt, verify
from .tools import bench, demo, info
from .training import train

app = typer.Typer(
    name="dlmt",
    help="Transform image data sets with a secret key before training elsewhere (DLMT, CSCWD 2023), fast and exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (keygen, encrypt, decrypt, verify, inspect, train, info, bench, demo):
    app.command()(completed(command))


def main() -> None:
    """Run the command line: our own errors become one line and an exit code, never a traceback."""
    try:
        with stopped_by_signals():
            app()
    except (UsageError, ParameterError) as error:
        _stop(error, 2)
    except (DlmtError, OSError) as error:
        _stop(error, 1)
    except Stopped as stop:
        _stop(stop, stop.exit_code, at_once=_waits_for_a_server())
    except SystemExit as stop:
        if stop.code == 2 and "--json" in sys.argv[1:]:  # typer has told stderr what is wrong
            print(json.dumps({"error": "wrong use: see stderr", "kind": "UsageError", "exit_code": 2}))
        raise


def _waits_for_a_server() -> bool:
    """Whether threads wait for answers, which Python would wait for too."""
    from ..stores.batching import WAITING

    return any(thread.name.startswith(WAITING) for thread in threading.enumerate())


def _stop(message: BaseException, code: int, at_once: bool = False) -> NoReturn:
    if "--json" in sys.argv[1:]:
        print(json.dumps({"error": str(message), "kind": type(message).__name__, "exit_code": code}))
    console().print(f"dlmt: {message}", style="yellow" if code == 2 else "red", highlight=False, markup=False)
    if at_once:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
