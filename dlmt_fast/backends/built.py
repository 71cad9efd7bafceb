"""What the build recorded about a compiled module (`_build.json`): the words for one that is missing."""

from __future__ import annotations

import json
from pathlib import Path


def why_missing(module: str) -> str:
    """Why the module "native" or "cuda" was not built, as the build recorded it."""
    try:
        record = json.loads((Path(__file__).resolve().parents[1] / "_build.json").read_text())[module]
        return "it was built but is gone" if record["built"] else str(record["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "dlmt_fast is used without having been installed"
