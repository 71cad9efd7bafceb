"""Builds the native modules, or says in `dlmt_fast/_build.json` why it did not.

Environment:
    DLMT_NATIVE=auto|0|1    the C++ module: where it compiles (default), never, or else fail
    DLMT_SANITIZE=1         with AddressSanitizer and UndefinedBehaviorSanitizer, for tests
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
BUILD_JSON = Path("dlmt_fast") / "_build.json"
SANITIZE = os.environ.get("DLMT_SANITIZE", "0") == "1"


class NotBuilt(Exception):
    """A module cannot be built here; the text is the reason."""


def native_module() -> Pybind11Extension:
    """`_cpu`: bits are the contract, so no contraction and no fast math; instruction sets are chosen at run time, so
    no -march. Floating-point traps are given up: they hinder vectorisation and change no result."""
    flags = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
    links = ["-pthread"]
    if SANITIZE:
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        # Python's own -fwrapv would define, and so hide, signed overflow.
        flags += [*sanitizers, "-g", "-O1", "-fno-omit-frame-pointer", "-fno-wrapv"]
        links += sanitizers
    return Pybind11Extension(
        "dlmt_fast._cpu",
        sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc").glob("**/*.cpp") if "tests" not in path.parts),
        depends=sorted(str(path.relative_to(HERE)) for path in HERE.glob("csrc/**/*.h") if "cuda" not in path.parts),
        cxx_std=17,
        extra_compile_args=flags,
        extra_link_args=links,
    )


def levels() -> list[str]:
    """The CPU levels that the sources hold for the machine built for."""
    return ["avx512", "avx2", "baseline"] if platform.machine().lower() in ("x86_64", "amd64") else ["baseline"]


def switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"{name}={value!r}: expected auto, 0 or 1")
    return value


def first_error(text: str) -> str:
    """The compiler's first error line, without this machine's directories."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it failed without a word")
    return re.sub(r"(?<![\w./])/[^\s:'\"]*/", "", line)[:300]


def run_compiler(command: list[str], **_: Any) -> None:
    """As the compiler class's `spawn`, but keeps what the compiler said: pip hides it."""
    print(shlex.join(command), flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise NotBuilt(f"the C++ compiler {Path(command[0]).name} cannot be run: {error.strerror}") from None
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise NotBuilt(f"{Path(command[0]).name}: {first_error(done.stdout)}")


class BuildModules(build_ext):
    """Builds what can be built and records the decisions."""

    def run(self) -> None:
        self.force = True  # objects of another compiler or other flags would not be what the report says
        self.report: dict[str, dict[str, Any]] = {"native": {}, "cuda": {}}
        self.report["cuda"] = {"built": False, "reason": "this version has no CUDA backend"}
        wish = switch("DLMT_NATIVE")
        if wish == "0":
            self.report["native"] = {"built": False, "reason": "switched off by DLMT_NATIVE=0"}
            self.extensions = []
        super().run()
        target = HERE if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        path = target / BUILD_JSON
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.report, indent=2) + "\n")

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            try:
                self.report["native"] = self.build_native(extension)
            except Exception as error:
                if switch("DLMT_NATIVE") == "1":
                    raise SystemExit(f"DLMT_NATIVE=1, but the native module cannot be built: {error}") from error
                reason = str(error) if isinstance(error, NotBuilt) else first_error(str(error))
                print(f"dlmt-fast: the native module is left out: {reason}", file=sys.stderr)
                self.report["native"] = {"built": False, "reason": reason}
                self.extensions.remove(extension)

    def build_native(self, extension: Pybind11Extension) -> dict[str, Any]:
        if self.compiler.compiler_type != "unix":
            raise NotBuilt(f"the native module needs GCC or Clang, not {self.compiler.compiler_type}")
        self.compiler.spawn = self.compiler.call = run_compiler  # setuptools calls the one or the other
        compiler = self.check_compiler()
        self.build_extension(extension)
        return {
            "built": True,
            "reason": f"compiled by {compiler}",
            "compiler": compiler,
            "flags": [*extension.extra_compile_args],
            "levels": levels(),
        }

    def check_compiler(self) -> str:
        """Its name and version, once a small C++17 program has been compiled."""
        program = "#if __cplusplus < 201703L\n#error this compiler has no C++17\n#endif\n#include <optional>\n"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "check.cpp"
            source.write_text(program)
            self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-std=c++17"])
        command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        version = subprocess.run([command[0], "-dumpfullversion", "-dumpversion"], capture_output=True, text=True)
        return f"{Path(command[0]).name} {version.stdout.strip()}".strip()


setup(ext_modules=[native_module()], cmdclass={"build_ext": BuildModules})
