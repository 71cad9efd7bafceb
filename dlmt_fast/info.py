"""What `dlmt info` shows: version, machine, backends, and how the package was built."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata, resources
from typing import Any

from . import backends
from ._version import __version__
from .errors import BackendError

#: Which library does what in stores; all of them come with the package. `stores.jpeg` and `stores.png_reader` say which
#: files are Pillow's.
_CODECS = {
    "JPEG": "simplejpeg (libjpeg-turbo); Pillow for CMYK, and for files that it warns of",
    "PNG": "isal (ISA-L) and the native module; Pillow for palettes, transparency, interlacing, and without the module",
    "other images": "Pillow",
    "gzip and checksums": "isal (ISA-L)",
}
_PACKAGES = ("numpy", "numba", "torch", "torchvision", "cryptography", "pillow", "simplejpeg", "isal")


def collect() -> dict[str, Any]:
    """Facts as a plain dict."""
    available = backends.available()
    try:
        chosen: dict[str, str] | None = backends.auto()._asdict()
    except BackendError:
        chosen = None
    facts: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backends": available,
        "auto": chosen,
        "build": build_record(),
        "codecs": _CODECS,
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if available["native"] == "ok":
        from .backends import native

        facts["cpu_level"] = native.level()
        facts["cpu_levels"] = list(native.levels())
    if record := cuda_record(available["cuda"] == "ok"):
        facts["cuda"] = record
    return facts


def cuda_record(usable: bool) -> dict[str, Any]:
    """What the CUDA module was compiled for, and the devices it can use; empty where the module is missing."""
    try:
        from .backends import cuda
    except BackendError:
        return {}
    return {"architectures": cuda.architectures(), "devices": cuda.devices() if usable else []}


def describe(facts: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"dlmt-fast {facts['version']}, Python {facts['python']}, {facts['platform']}, {facts['cpus']} CPUs"]
    lines += [f"  {name:<10} {state}" for name, state in facts["backends"].items()]
    if facts["auto"]:
        lines.append(f'  backend="auto" is {facts["auto"]["name"]}: {facts["auto"]["reason"]}')
    if "cpu_level" in facts:
        lines.append(f"  CPU level {facts['cpu_level']} (of {', '.join(facts['cpu_levels'])}; DLMT_CPU_LEVEL chooses)")
    if "cuda" in facts:
        lines.append(f"  CUDA code for {', '.join(facts['cuda']['architectures'])}")
        lines += [f"  cuda:{i} {_device(device)}" for i, device in enumerate(facts["cuda"]["devices"])]
    for module, record in facts["build"].items():
        lines.append(f"  built {module}: {'yes' if record.get('built') else 'no'}, {record.get('reason', '')}")
    lines += [f"  {what} by {which}" for what, which in facts["codecs"].items()]
    lines.append("  " + ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items()))
    return "\n".join(lines)


def _device(device: dict[str, Any]) -> str:
    return (
        f"{device['name']}, compute capability {device['capability']}, {device['multiprocessors']} multiprocessors, "
        f"{device['memory'] / 2**30:.1f} GiB"
    )


def build_record() -> dict[str, Any]:
    """What the build decided about each module and why (`_build.json`); empty where the package was not built."""
    file = resources.files("dlmt_fast") / "_build.json"
    if not file.is_file():
        return {}
    record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return record


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
