"""The machine code of the CUDA kernels as nvcc made it: what would make a kernel slow or wrong and needs no GPU to see.

Ceilings of instructions hold for the version of nvcc that they were counted with, about 10 % above its counts; the rest
holds for any. Functions are named as the linker names them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import dlmt_fast as dlmt

COUNTED_WITH = "nvcc 13.0.88"
PACKAGE = Path(dlmt.__file__).resolve().parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


class Kernel(NamedTuple):
    """Where a kernel's time goes: the loop over rows."""

    name: str  # a pattern of the function's name
    vector: int  # positions a chunk
    load: str  # the instruction that reads a chunk
    in_flight: int  # loads under way before the first is used
    ceiling: float  # instructions a pixel on sm_90 and later
    floats: int  # multiplications a pixel, and as many additions


STREAM = "stream.*{}.*Lb1E"
KERNELS = {
    "range": Kernel(STREAM.format("RangeOp"), 16, "LDG.E.128", 4, 3.9, 0),
    "none uint8": Kernel(STREAM.format("NoneOpIhE"), 16, "LDG.E.128", 4, 3.9, 0),
    "none uint16": Kernel(STREAM.format("NoneOpItE"), 8, "LDG.E.64", 4, 4.9, 0),
    "none int32": Kernel(STREAM.format("NoneOpIiE"), 4, "LDG.E", 8, 5.9, 0),
    "unit float32": Kernel(STREAM.format("[0-9]UnitOpIfE"), 4, "LDG.E", 8, 8.9, 1),
    "unit float16": Kernel(STREAM.format("[0-9]UnitOpI.*Float16"), 8, "LDG.E.64", 4, 7.9, 1),
    "unit bfloat16": Kernel(STREAM.format("[0-9]UnitOpI.*Bfloat16"), 8, "LDG.E.64", 4, 7.9, 1),
    "minmax": Kernel(STREAM.format("8MinmaxOp"), 16, "LDG.E.128", 2, 8.5, 1),
    "minmax float32": Kernel(STREAM.format("MinmaxUnitOpIfE"), 4, "LDG.E", 8, 10.5, 1),
    "bounds": Kernel("6boundsILb1E", 16, "LDG.E.128", 4, 5.2, 0),
    "minmax_small": Kernel("minmax_smallILb1E", 16, "LDG.E.128", 1, 15.5, 1),
    "minmax_cluster": Kernel("minmax_cluster", 16, "LDGSTS.E.BYPASS.128", 2, 18.0, 1),
}


def tools() -> dict[str, str]:
    """The folder with cuobjdump and nvdisasm, as PATH; skips where there is none."""
    nvcc = shutil.which(os.environ.get("DLMT_NVCC", "nvcc"))
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [
        Path(folder) / "nvidia" / part / "bin"
        for folder in site.getsitepackages()
        for part in ("cu13", "cuda_cuobjdump")
    ]
    places += [Path(folder) for folder in os.get_exec_path()]
    for place in places:
        if (place / "cuobjdump").exists() and (place / "nvdisasm").exists():
            return os.environ | {"PATH": f"{place}{os.pathsep}{os.environ.get('PATH', '')}"}
    pytest.skip("cuobjdump and nvdisasm are not installed (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")


def dump(*options: str) -> str:
    module = next(PACKAGE.glob("_cuda*.so"), None)
    if module is None:
        pytest.skip(f"dlmt_fast._cuda is not built: {built()['reason']}")
    environment = tools()
    command = [shutil.which("cuobjdump", path=environment["PATH"]) or "cuobjdump", *options, str(module)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def built() -> dict[str, str]:
    found: dict[str, str] = json.loads((PACKAGE / "_build.json").read_text())["cuda"]
    return found


class Code:
    """The functions of one architecture: (address, instruction) in order."""

    def __init__(self, architecture: str) -> None:
        self.functions: dict[str, list[tuple[int, str]]] = {}
        for part in dump("-sass", "-arch", architecture).split("Function : ")[1:]:
            name = part.split("\n", 1)[0].strip()
            lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", part)
            self.functions[name] = [(int(address, 16), text) for address, text in lines]

    def of(self, pattern: str) -> list[tuple[int, str]]:
        found = [name for name in self.functions if re.search(pattern, name)]
        if "Float16" in pattern and "Bfloat16" not in pattern:
            found = [name for name in found if "Bfloat16" not in name]
        assert len(found) == 1, (pattern, found)
        return self.functions[found[0]]

    def loop(self, pattern: str) -> list[str]:
        """The largest loop that reads global memory: instructions without their predicates."""
        code = self.of(pattern)
        loops = [
            [strip(text) for at, text in code if start <= at <= end]
            for end, branch in code
            for start in targets(branch)
            if start < end
        ]
        return max((body for body in loops if any(text.startswith("LDG") for text in body)), key=len)


def targets(text: str) -> Iterator[int]:
    found = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
    if found:
        yield int(found[1], 16)


def strip(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text)


def name_of(text: str) -> str:
    return text.split()[0]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def code(request: pytest.FixtureRequest) -> tuple[str, Code]:
    if request.param not in built().get("architectures", ARCHITECTURES):
        pytest.skip(f"this nvcc does not compile for {request.param}")
    return request.param, Code(request.param)


def test_nothing_is_kept_in_local_memory(code: tuple[str, Code]) -> None:
    functions = code[1].functions
    assert len(functions) > 30
    bad = [
        (name, text)
        for name, body in functions.items()
        for _, text in body
        if name_of(strip(text))[:3] in ("LDL", "STL")
    ]
    assert not bad


def test_registers(code: tuple[str, Code]) -> None:
    """As many blocks as schedule.cpp counts on must fit: 65536 registers a multiprocessor."""
    usage = dump("-res-usage", "-arch", code[0])
    found = re.findall(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert len(found) == len(code[1].functions)
    for name, registers, _, _, local in found:
        aligned = "Lb1E" in name
        most = {"minmax_small": 80 if aligned else 128, "minmax_cluster": 104}
        most |= dict.fromkeys(("stream", "6bounds"), 72 if aligned else 144)
        kind = next((each for each in most if each in name), "other")
        assert int(registers) <= most.get(kind, 64), name
        assert int(local) == 0, name


#: Rows on their way are for later; a division a row and thread.
AHEAD = ("minmax_small", "minmax_cluster")


@pytest.mark.parametrize("name", KERNELS)
def test_hot_loops(code: tuple[str, Code], name: str) -> None:
    architecture, functions = code
    kernel = KERNELS[name]
    if name == "minmax_cluster" and architecture == "sm_80":
        pytest.skip("sm_80 has no clusters")
    loop = functions.loop(kernel.name)
    names = Counter(name_of(text) for text in loop)
    short = Counter(name_of(text).split(".")[0] for text in loop)
    loads, stores = names[kernel.load], names["STG.E.128"]
    chunks = loads if name == "bounds" else stores
    assert loads == kernel.in_flight
    assert chunks == max(kernel.in_flight, 1)
    if name not in AHEAD:
        first_store = next((i for i, text in enumerate(loop) if text.startswith("STG")), len(loop))
        assert [i for i, text in enumerate(loop) if text.startswith("LDG")][-1] < first_store
    forbidden = ["MEMBAR", "CCTL", "ERRBAR", "UCGABAR_ARV", "UCGABAR_WAIT", "F2I", "FRND", "LDL", "STL", "CALL"]
    if architecture != "sm_80":  # which has no other conversion from integers
        forbidden += ["I2F"]
    if name in AHEAD or architecture == "sm_80":  # where a jump out of a loop is written so
        forbidden.remove("CALL")
    assert not {each: short[each] for each in forbidden if short[each]}
    pixels = chunks * kernel.vector
    # A fused product and sum would give other bits; those of the division are its own.
    extra = Counter({"FMUL": 2, "FADD": 2, "FFMA": 8}) if name in AHEAD else Counter()
    assert kernel.floats * pixels <= short["FMUL"] <= kernel.floats * pixels + extra["FMUL"]
    assert kernel.floats * pixels <= short["FADD"] <= kernel.floats * pixels + extra["FADD"]
    assert short["FFMA"] <= extra["FFMA"]
    assert not [text for text in loop if re.match(r"(FMUL|FADD)\S*\.FTZ", text)]


@pytest.mark.parametrize("name", KERNELS)
def test_instructions_a_pixel(code: tuple[str, Code], name: str) -> None:
    if built()["compiler"] != COUNTED_WITH:
        pytest.skip(f"counted with {COUNTED_WITH}, built with {built()['compiler']}")
    architecture, functions = code
    if name == "minmax_cluster" and architecture == "sm_80":
        pytest.skip("sm_80 has no clusters")
    kernel = KERNELS[name]
    loop = functions.loop(kernel.name)
    names = Counter(name_of(text) for text in loop)
    count = len(loop) / (kernel.vector * (names[kernel.load] if name == "bounds" else names["STG.E.128"]))
    print(f"{architecture} {name}: {count:.2f} instructions a pixel")
    assert count <= kernel.ceiling * (1.15 if architecture == "sm_80" else 1)
