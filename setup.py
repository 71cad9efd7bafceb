"""Builds the native modules, or says in `dlmt_fast/_build.json` why it did not.

Environment:
    DLMT_NATIVE=auto|0|1    the C++ module: where it compiles (default), never, or else fail
    DLMT_CUDA=auto|0|1      the CUDA module: where nvcc is found and works (default), never, or else fail
    DLMT_NVCC=PATH          this nvcc; else the one of CUDA_HOME or CUDA_PATH, else the one of PATH
    DLMT_SANITIZE=1         with AddressSanitizer and UndefinedBehaviorSanitizer, for tests; without CUDA
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
BUILD_JSON = Path("dlmt_fast") / "_build.json"
SANITIZE = os.environ.get("DLMT_SANITIZE", "0") == "1"
PARTS = {  # of an extension: its name in the report, its switch, and words for it
    "dlmt_fast._cpu": ("native", "DLMT_NATIVE", "the native module"),
    "dlmt_fast._cuda": ("cuda", "DLMT_CUDA", "the CUDA module"),
}


class NotBuilt(Exception):
    """A module cannot be built here; the text is the reason."""


def sources(*patterns: str) -> list[str]:
    """Files of csrc/, as paths from the project's root."""
    return sorted(str(path.relative_to(HERE)) for pattern in patterns for path in (HERE / "csrc").glob(pattern))


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
        sources("bind_cpu.cpp", "bind_prepared.cpp", "cpu/*.cpp"),
        depends=sources("*.h", "cpu/*.h"),
        cxx_std=17,
        extra_compile_args=flags,
        extra_link_args=links,
    )


# A register spilled to memory, or an array kept there, would cost more than any design of a kernel gains. Products and
# sums are never fused; the arithmetic also says so itself.
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false", "--threads", "2"),
    *("-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"),
]
CUDA_TARGETS = (80, 90, 100)


def cuda_module() -> Pybind11Extension:
    """`_cuda`: nvcc compiles the .cu files to objects, the usual compiler the rest; the runtime is linked statically,
    and its names stay inside."""
    return Pybind11Extension(
        "dlmt_fast._cuda",
        sources("bind_cuda.cpp", "cuda/*.cpp"),
        depends=sources("*.h", "cpu/job.h", "cuda/*"),
        cxx_std=17,
        extra_compile_args=["-O2", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"],
        extra_link_args=["-Wl,--exclude-libs,ALL", "-pthread"],
    )


class Nvcc:
    """The CUDA compiler, and what it can do."""

    def __init__(self) -> None:
        self.path = self._find()
        said = self._ask("--version")
        found = re.search(r"release [\d.]+, V([\d.]+)", said)
        if found is None:
            raise NotBuilt(f"{self.path.name} --version says no CUDA version: {first_error(said)}")
        self.version = found[1]
        known = {int(number) for number in re.findall(r"sm_(\d+)\b", self._ask("--list-gpu-code"))}
        self.targets = [target for target in CUDA_TARGETS if target in known]
        if not self.targets:
            raise NotBuilt(f"nvcc {self.version} compiles for none of sm_{', sm_'.join(map(str, CUDA_TARGETS))}")

    @property
    def name(self) -> str:
        return f"nvcc {self.version}"

    @property
    def architectures(self) -> list[str]:
        """Machine code of each target, and PTX of the newest for devices to come."""
        return [*(f"sm_{target}" for target in self.targets), f"compute_{self.targets[-1]}"]

    def compile(self, source: str, target: str, host: str | None) -> None:
        generate = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in self.targets[:-1]]
        newest = self.targets[-1]
        generate.append(f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]")
        compiler = [] if host is None else ["-ccbin", host]
        run_compiler([str(self.path), *NVCC_FLAGS, *generate, *compiler, "-c", source, "-o", target])

    def libraries(self) -> list[str]:
        """Where the static runtime lies, from what nvcc itself would tell a linker."""
        said = self._ask("--dryrun", "-cudart", "static", "-o", "nothing", "nothing.o")
        line = re.search(r"LIBRARIES=(.*)", said)
        folders = [part[2:] for part in shlex.split(line[1] if line else "") if part.startswith("-L")]
        folders = [folder for folder in folders if (Path(folder) / "libcudart_static.a").exists()]
        if not folders:
            raise NotBuilt(f"{self.name} has no libcudart_static.a beside it; install the static CUDA runtime")
        return folders

    def _find(self) -> Path:
        named = os.environ.get("DLMT_NVCC")
        homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
        places = [named] if named else [*(str(Path(home) / "bin" / "nvcc") for home in homes), "nvcc"]
        for place in places:
            found = shutil.which(place)
            if found is not None:
                return Path(found)
        where = "DLMT_NVCC names none" if named else "looked in CUDA_HOME, CUDA_PATH and PATH"
        raise NotBuilt(f"nvcc was not found ({where})")

    def _ask(self, *options: str) -> str:
        try:
            done = subprocess.run(
                [str(self.path), *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise NotBuilt(f"{self.path.name} cannot be run: {error.strerror}") from None
        return done.stdout


def levels() -> list[str]:
    """The CPU levels that the sources hold for the machine built for."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [*(("avx512vbmi", "avx512", "avx2") if x86 else ()), "baseline"]


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
    """Builds what can be built and records the decisions; the modules fail or succeed one without the other."""

    def run(self) -> None:
        self.force = True  # objects of another compiler or other flags would not be what the report says
        self.report: dict[str, dict[str, Any]] = {"native": {}, "cuda": {}}
        self.extensions = [extension for extension in self.extensions if self.is_wanted(extension)]
        super().run()
        target = HERE if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        path = target / BUILD_JSON
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.report, indent=2) + "\n")

    def is_wanted(self, extension: Pybind11Extension) -> bool:
        name, variable, _ = PARTS[extension.name]
        reason = None
        if switch(variable) == "0":
            reason = f"switched off by {variable}=0"
        elif name == "cuda" and SANITIZE:
            reason = "left out of a build with sanitizers (DLMT_SANITIZE=1)"
        if reason is not None:
            self.report[name] = {"built": False, "reason": reason}
        return reason is None

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            name, variable, words = PARTS[extension.name]
            try:
                self.report[name] = self.build_cuda(extension) if name == "cuda" else self.build_native(extension)
            except Exception as error:
                if switch(variable) == "1":
                    raise SystemExit(f"{variable}=1, but {words} cannot be built: {error}") from error
                reason = str(error) if isinstance(error, NotBuilt) else first_error(str(error))
                print(f"dlmt-fast: {words} is left out: {reason}", file=sys.stderr)
                self.report[name] = {"built": False, "reason": reason}
                self.extensions.remove(extension)

    def build_native(self, extension: Pybind11Extension) -> dict[str, Any]:
        compiler = self.prepare_compiler("the native module")
        self.build_extension(extension)
        return {
            "built": True,
            "reason": f"compiled by {compiler}",
            "compiler": compiler,
            "flags": [*extension.extra_compile_args],
            "levels": levels(),
        }

    def build_cuda(self, extension: Pybind11Extension) -> dict[str, Any]:
        if not sys.platform.startswith("linux"):
            raise NotBuilt(f"the CUDA module needs Linux, not {sys.platform}")
        nvcc = Nvcc()
        compiler = self.prepare_compiler("the CUDA module")
        extension.library_dirs += nvcc.libraries()
        extension.libraries += ["cudart_static", "dl", "rt"]
        extension.define_macros.append(("DLMT_CUDA_ARCHITECTURES", f'"{" ".join(nvcc.architectures)}"'))
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        host = self.cxx()
        kernels = sources("cuda/*.cu")
        extension.extra_objects += [str(folder / f"{Path(source).stem}.o") for source in kernels]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(nvcc.compile, kernels, extension.extra_objects, [host] * len(kernels)))
        self.build_extension(extension)
        return {
            "built": True,
            "reason": f"compiled by {nvcc.name} and {compiler}",
            "compiler": nvcc.name,
            "host_compiler": compiler,
            "flags": NVCC_FLAGS,
            "architectures": nvcc.architectures,
        }

    def prepare_compiler(self, words: str) -> str:
        """Let the compiler's errors be kept, see that it works; its name and version."""
        if self.compiler.compiler_type != "unix":
            raise NotBuilt(f"{words} needs GCC or Clang, not {self.compiler.compiler_type}")
        self.compiler.spawn = self.compiler.call = run_compiler  # setuptools calls the one or the other
        return self.check_compiler()

    def cxx(self) -> str:
        command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        return str(next((part for part in command if Path(part).name not in ("ccache", "sccache")), command[0]))

    def check_compiler(self) -> str:
        """Its name and version, once a small C++17 program has been compiled."""
        program = "#if __cplusplus < 201703L\n#error this compiler has no C++17\n#endif\n#include <optional>\n"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "check.cpp"
            source.write_text(program)
            self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-std=c++17"])
        command = self.cxx()
        version = subprocess.run([command, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True)
        return f"{Path(command).name} {version.stdout.strip()}".strip()


setup(ext_modules=[native_module(), cuda_module()], cmdclass={"build_ext": BuildModules})
