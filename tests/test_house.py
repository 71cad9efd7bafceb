"""The rules of the house: who may import whom, docstrings of what is public, and which package is under test."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import dlmt_fast as dlmt

PACKAGE = Path(dlmt.__file__).resolve().parent

#: Where each module stands, those to come included. A dot at the end stands for the modules of that folder.
LAYERS: dict[str, str] = {
    "dlmt_fast": "top",
    "dlmt_fast.errors": "leaf",
    "dlmt_fast.canonical": "leaf",
    "dlmt_fast._version": "leaf",
    "dlmt_fast.keys": "keys",
    "dlmt_fast.keyfile": "keys",
    "dlmt_fast.schemes": "schemes",
    "dlmt_fast.schemes.": "schemes",
    "dlmt_fast.backends": "backends",
    "dlmt_fast.backends.": "backends",
    "dlmt_fast._cpu": "backends",
    "dlmt_fast.stores": "stores",
    "dlmt_fast.stores.": "stores",
    "dlmt_fast._cuda": "backends",
    "dlmt_fast.arrays": "functional",
    "dlmt_fast.bounds": "functional",
    "dlmt_fast.device_arrays": "functional",
    "dlmt_fast.on_device": "functional",
    "dlmt_fast.direct": "functional",
    "dlmt_fast.functional": "functional",
    "dlmt_fast.gpu_batches": "functional",
    "dlmt_fast.traced": "functional",
    "dlmt_fast.torch_ops": "torch_ops",
    "dlmt_fast.checking": "checking",
    "dlmt_fast.difference": "checking",
    "dlmt_fast.transforms": "transforms",
    "dlmt_fast.pinned": "transforms",
    "dlmt_fast.albumentations": "transforms",
    "dlmt_fast.plans": "transforms",
    "dlmt_fast.hidden": "transforms",
    "dlmt_fast.pipeline": "pipeline",
    "dlmt_fast.pipeline.": "pipeline",
    "dlmt_fast.pipeline.formats": "pipeline",
    "dlmt_fast.pipeline.formats.": "pipeline",
    "dlmt_fast.training": "tools",
    "dlmt_fast.training.": "tools",
    "dlmt_fast.audit": "tools",
    "dlmt_fast.audit.": "tools",
    "dlmt_fast.bench": "tools",
    "dlmt_fast.bench.": "tools",
    "dlmt_fast.info": "info",
    "dlmt_fast.demo": "demo",
    "dlmt_fast.cli": "cli",
    "dlmt_fast.cli.": "cli",
}

#: Which layers each layer may import, beside itself and the leaves.
MAY_IMPORT: dict[str, set[str]] = {
    "leaf": set(),
    "keys": set(),
    "schemes": {"keys"},
    "backends": set(),
    "stores": {"backends"},
    "torch_ops": {"backends"},
    "functional": {"schemes", "backends", "torch_ops"},
    "checking": {"keys", "schemes", "functional"},
    "transforms": {"keys", "schemes", "backends", "functional", "checking"},
    "pipeline": {"keys", "schemes", "functional", "stores"},
    "tools": {"keys", "schemes", "backends", "functional", "stores", "transforms", "checking", "pipeline"},
    "info": {"backends"},
    "demo": {"keys", "schemes", "backends", "functional", "stores", "pipeline"},
    "cli": {"keys", "schemes", "functional", "stores", "pipeline", "tools", "info", "demo"},
    "top": {"keys", "schemes", "backends", "functional"},
}

#: Within these folders the families, formats and implementations do not know each other: only what they share is
#: imported by others, and the modules that belong to one of them by that one.
SHARED: dict[str, set[str]] = {
    "dlmt_fast.schemes": {"plan", "matrices", "precision"},
    "dlmt_fast.backends": {"contract", "built"},
    "dlmt_fast.stores": {
        *("contract", "publish", "manifest", "decode", "batching", "png", "npy", "gzipped", "runs", "sliced"),
        *("streamed", "axes", "listing", "stamps", "scratch", "digests", "walk", "location", "remote_errors"),
        *("segments", "staging", "objects", "remote", "reading", "threads", "equal", "scattered", "attempts"),
    },
}
PRIVATE: dict[str, set[str]] = {
    "dlmt_fast.stores.decode": {"jpeg", "png_reader"},
    "dlmt_fast.stores.objects": {"bucket"},
    "dlmt_fast.stores.bucket": {"s3_requests"},
    "dlmt_fast.stores.webdataset": {"tar_index"},
    "dlmt_fast.stores.idx": {"idx_format"},
    "dlmt_fast.stores.cifar": {"restricted_pickle"},
    "dlmt_fast.stores.parquet": {"parquet_format"},
    "dlmt_fast.stores.parquet_writer": {"parquet_format"},
    "dlmt_fast.stores.zarr_arrays": {"zarr_format", "zarr_remote"},
    "dlmt_fast.stores.zarr_writer": {"zarr_format"},
    "dlmt_fast.backends.numba_cpu": {"numba_kernels", "numba_inverse", "pool"},
    "dlmt_fast.backends.numba_inverse": {"numba_kernels"},
}

#: What a layer may not load even from outside the package: stores and kernels know no torch, and keys no array.
FOREIGN: dict[str, set[str]] = {
    "leaf": {"numpy", "torch", "numba", "cryptography", "PIL", "typer", "rich"},
    "keys": {"numpy", "torch", "numba", "PIL", "typer", "rich"},
    "schemes": {"torch", "numba", "PIL", "typer", "rich"},
    "backends": {"torch", "cryptography", "PIL", "typer", "rich"},
    "stores": {"torch", "numba", "cryptography", "typer", "rich"},
    "functional": {"numba", "cryptography", "PIL", "typer", "rich"},
    "transforms": {"numba", "cryptography", "typer", "rich"},
    "pipeline": {"torch", "numba", "typer"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer_of(name: str) -> str | None:
    return LAYERS.get(name) or LAYERS.get(name.rpartition(".")[0] + ".")


def only_for_types(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:` is never executed."""
    guarded = (n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING"))
    return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}


def imports_of(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """(absolute module, line) of every import statement and literal import_module call, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    skipped = only_for_types(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner if inner in SOURCES else module), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            literals = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from ((importlib.util.resolve_name(literal, package), node.lineno) for literal in literals)


def complaint(importer: str, imported: str) -> str | None:
    """Why the import is against the rules, or None."""
    here = layer_of(importer)
    assert here is not None, f"{importer} has no layer: give it one in LAYERS, and keep the README's picture true"
    if not imported.startswith("dlmt_fast"):
        if imported.split(".")[0] in FOREIGN.get(here, set()):
            return f"the layer {here!r} does not load {imported.split('.')[0]}"
        return None
    there = layer_of(imported)
    if there is None:
        return f"{imported} has no layer: give it one in LAYERS"
    if there == "leaf":
        return None
    if there != here:
        if there in MAY_IMPORT[here]:
            return None
        return f"{here!r} may import {sorted(MAY_IMPORT[here]) or 'leaves only'}, not {there!r}"
    folder, _, leaf = imported.rpartition(".")
    if folder not in SHARED or importer == folder or leaf in SHARED[folder] or leaf in PRIVATE.get(importer, set()):
        return None
    return f"sideways: within {folder} only {sorted(SHARED[folder])} are shared"


def test_the_table_covers_every_module() -> None:
    assert len(SOURCES) > 20
    assert not [name for name in SOURCES if layer_of(name) is None]
    assert set(LAYERS.values()) == set(MAY_IMPORT)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_follow_the_layers(name: str) -> None:
    path = SOURCES[name]
    found = [(imported, line, complaint(name, imported)) for imported, line in imports_of(name, path)]
    wrong = [f"{path.name}:{line}: {name} imports {imported}: {why}" for imported, line, why in found if why]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("dlmt_fast.keys", "dlmt_fast.schemes"),
        ("dlmt_fast.keyfile", "numpy"),
        ("dlmt_fast.errors", "dlmt_fast.keys"),
        ("dlmt_fast.schemes.dlmt", "dlmt_fast.backends"),
        ("dlmt_fast.backends.native", "dlmt_fast.backends.reference"),
        ("dlmt_fast.backends.native", "dlmt_fast.backends.pool"),
        ("dlmt_fast.backends.reference", "dlmt_fast.schemes.plan"),
        ("dlmt_fast.stores.folder", "dlmt_fast.stores.idx"),
        ("dlmt_fast.stores.folder", "dlmt_fast.keys"),
        ("dlmt_fast.stores.png", "torch.nn"),
        ("dlmt_fast.functional", "dlmt_fast.transforms"),
        ("dlmt_fast.functional", "dlmt_fast.stores.folder"),
        ("dlmt_fast.pipeline.worker", "dlmt_fast.cli"),
        ("dlmt_fast.info", "dlmt_fast.cli"),
        ("dlmt_fast", "dlmt_fast.transforms"),
        ("dlmt_fast", "dlmt_fast.pipeline"),
    ],
)
def test_the_rules_refuse(importer: str, imported: str) -> None:
    assert complaint(importer, imported)


def test_imports_in_functions_are_seen() -> None:
    found = {imported for imported, _ in imports_of("dlmt_fast.keys", SOURCES["dlmt_fast.keys"])}
    assert "dlmt_fast.keyfile" in found
    assert "cryptography.hazmat.primitives.kdf.hkdf" in found


# --- what is public --------------------------------------------------------------------------------------------------


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The names of __all__, else those that the module defines without an underscore, and the classes' methods."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and n[0] != "_"
        ]
    for name in names:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value) or inspect.ismodule(value):
            yield name, value
        if inspect.isclass(value) and value.__module__.startswith("dlmt_fast"):
            for member, inner in vars(value).items():
                if member[0] != "_" and (callable(inner) or isinstance(inner, (classmethod, property))):
                    yield f"{name}.{member}", inner


#: Explained in the docstring of their class.
IN_THE_CLASS = {"Plan.exact", "Plan.worst_error", "Encrypt.forward", "Decrypt.forward"}


@pytest.mark.parametrize("name", ["dlmt_fast", "dlmt_fast.backends", "dlmt_fast.transforms", "dlmt_fast.training"])
def test_public_names_have_docstrings(name: str) -> None:
    if name.endswith(("transforms", "training")):
        pytest.importorskip("torchvision")
    module = importlib.import_module(name)
    assert module.__doc__
    objects = dict(public_objects(module))
    assert len(objects) >= 2
    assert not [n for n, value in objects.items() if not inspect.getdoc(value) and n not in IN_THE_CLASS]


def test_the_public_names() -> None:
    assert set(dlmt.__all__) == {
        "DLMT",
        "Key",
        "Plan",
        "__version__",
        "backends",
        "decrypt",
        "encrypt",
        "errors",
        "keys",
    }
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", ["dlmt_fast", "dlmt_fast.backends"])
@pytest.mark.filterwarnings('ignore:backend="auto" uses numba:RuntimeWarning')
def test_the_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.attempted >= 2
    assert result.failed == 0


# --- what is under test ----------------------------------------------------------------------------------------------


def test_the_installed_package_is_under_test() -> None:
    """The checkout has no src/ folder and would shadow the installation, with modules that no user has."""
    if os.environ.get("DLMT_TEST_CHECKOUT") == "1":
        pytest.skip("DLMT_TEST_CHECKOUT=1: the checkout is tested on purpose")
    checkout = Path(__file__).resolve().parents[1]
    assert PACKAGE.parent != checkout, "run `pytest`, which leaves the checkout off the path, not `python -m pytest`"
    assert {"site-packages", "dist-packages"} & set(PACKAGE.parts), f"dlmt_fast comes from {PACKAGE}"
    assert checkout not in [Path(entry).resolve() for entry in sys.path]
