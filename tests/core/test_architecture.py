"""Holds the import directions between the layers: an AST walk over the package, and imports in fresh processes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ltx2_two_stage"
CODE_FOLDERS = ("nodes", "terminal", "ltx2_core", "device_manager")

# Only the kernels' contracts dispatch to it, and it has their value types from them.
TRITON = "ltx2_core.kernels.triton"

# Layer -> layers it may import besides itself and CONTRACTS. A module belongs to the longest prefix that matches it.
ALLOWED: dict[str, set[str]] = {
    "ltx2_core": set(),
    "ltx2_core.files": set(),
    "ltx2_core.kernels": {TRITON},
    TRITON: {"ltx2_core.kernels"},
    "ltx2_core.models": {"ltx2_core.kernels", "ltx2_core.files"},
    "ltx2_core.sampling": set(),
    "ltx2_core.media": set(),
    "ltx2_core.components": {"ltx2_core.models"},
    "ltx2_core.loading": {"ltx2_core.models", "ltx2_core.kernels", "ltx2_core.files", "ltx2_core.components"},
    "ltx2_core.stages": {"ltx2_core.sampling", "ltx2_core.models", "ltx2_core.media"},
    "ltx2_core.pipeline": {"ltx2_core.stages", "ltx2_core.sampling", "ltx2_core.models", "ltx2_core.media"},
    "device_manager": set(),
    "assembly": {"ltx2_core.loading", "ltx2_core.components", "device_manager"},
    "terminal": {"ltx2_core.files", "ltx2_core.loading", "ltx2_core.media", "device_manager"},
    "nodes": {"ltx2_core", "device_manager", "assembly"},
    "cli": {"ltx2_core", "device_manager", "assembly", "terminal"},
    "__main__": {"cli"},
    "": {"nodes"},
}
CONTRACTS = {
    f"ltx2_core.{name}"
    for name in (
        *("types", "protocols", "errors", "recipes", "recipe_choice", "request"),
        *("limits", "plain_text", "whole_file", "finite"),
    )
}
SEES_NO_CONTRACTS = {"device_manager", ""}
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
}
HOST_FILE_ONLY = HOST_MODULES - {"comfy_api"}
TEST_ONLY = {"diffusers", "kornia", "xformers", "torchvision", "einops", "scipy"}
DEVICE_MANAGER_NEEDS = {"torch"} | set(sys.stdlib_module_names)


def layer_of(module: str) -> str:
    return max((p for p in ALLOWED if p == "" or module == p or module.startswith(p + ".")), key=len)


def code_files() -> list[Path]:
    nested = [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *nested])


parsed = lru_cache(maxsize=None)(ast.parse)


def imports_of(source: str, package: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Every imported name as (dotted name, is inside the package); relative names start at the package's root."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] if node.level else []
            parts = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                folder = ROOT.joinpath(*parts)
                is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists()
                inside = node.level > 0
                yield ".".join([*parts, alias.name] if inside and is_module else parts), inside


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", code_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    layer = layer_of(module_name(path))
    package = path.relative_to(ROOT).parent.parts
    for name, inside in imports_of(path.read_text(encoding="utf-8"), package):
        where = f"{path.relative_to(ROOT)} imports {name}"
        top = name.split(".")[0]
        if not inside:
            assert top != PACKAGE, f"{where}: inside the package imports are relative, the checkout may have any name"
            assert top not in TEST_ONLY, f"{where}: a test-only dependency"
            assert top not in HOST_MODULES or layer == "nodes", f"{where}: ComfyUI is for nodes/ only"
            assert top not in HOST_FILE_ONLY or path.name == "host.py", f"{where}: only nodes/host.py may"
            assert layer != "device_manager" or top in DEVICE_MANAGER_NEEDS, f"{where}: torch and stdlib only"
            continue
        if name in CONTRACTS and layer not in SEES_NO_CONTRACTS:
            continue
        target = layer_of(name)
        allowed = {layer} | ALLOWED[layer]
        # nodes and cli are the composition roots: they may see every part of the engine that has a contract.
        if layer in {"nodes", "cli"}:
            allowed |= {other for other in ALLOWED if other.startswith("ltx2_core") and other != TRITON}
        assert target in allowed, f"{where}: {layer or 'the root'} may not import {target}"


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, inside functions and for type checking too."""
    paths = [*code_files(), *(ROOT / "benchmarks").rglob("*.py")]
    sources = {module_name(path): path for path in paths}
    return {
        module: {
            name
            for name, inside in imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parent.parts)
            if inside and name in sources
        }
        for module, path in sources.items()
    }


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself, or nothing."""
    cleared: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in cleared:
            for target in sorted(graph[module]):
                if found := search(target, [*way, module]):
                    return found
        cleared.add(module)
        return []

    return next((found for module in graph if (found := search(module, []))), [])


def test_no_imports_form_a_circle() -> None:
    graph = import_graph()
    assert graph["ltx2_core.kernels.frames"] >= {"ltx2_core.kernels.availability", f"{TRITON}.frames"}
    assert not circle_in(graph)


@pytest.mark.parametrize(
    ("graph", "circle"),
    [
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"a"}}, ["a", "a"]),
        ({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}, ["b", "d", "b"]),
    ],
    ids=["two ways to one module", "itself", "behind the first module"],
)
def test_circles_are_found(graph: dict[str, set[str]], circle: list[str]) -> None:
    assert circle_in(graph) == circle


def test_only_contracts_choose_between_kernels() -> None:
    """Elsewhere a contract is called, fused or not. CUDA graphs do not compute: they pay where kernels are fused."""
    asking = {
        module_name(path)
        for path in code_files()
        for node in ast.walk(parsed(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and "fused" in {alias.name for alias in node.names}
    }
    outside = {module for module in asking if not module.startswith("ltx2_core.kernels.")}
    assert outside == {"ltx2_core.models.transformer.graphs"}


def run_isolated(code: str) -> None:
    """Runs code in a fresh interpreter that sees the package through a loader only, and no ComfyUI."""
    prologue = (
        "import importlib, importlib.util, pkgutil, sys\n"
        f"spec = importlib.util.spec_from_file_location({PACKAGE!r}, {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        f"root = importlib.util.module_from_spec(spec)\n"
        f"sys.modules[{PACKAGE!r}] = root\n"
        f"spec.loader.exec_module(root)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", prologue + code], capture_output=True, text=True, env=environment, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr


def test_the_engine_imports_without_comfyui_or_test_only_packages() -> None:
    unwanted = sorted((HOST_MODULES | TEST_ONLY) - {"scipy", "einops"})  # these two may come in with transformers
    run_isolated(
        f"for area in ('ltx2_core', 'device_manager'):\n"
        f"    base = importlib.import_module('{PACKAGE}.' + area)\n"
        f"    for found in pkgutil.walk_packages(base.__path__, base.__name__ + '.'):\n"
        f"        importlib.import_module(found.name)\n"
        f"loaded = [name for name in {unwanted!r} if name in sys.modules]\n"
        f"assert not loaded, loaded\n"
    )


def test_importing_the_root_package_loads_nothing_heavy() -> None:
    run_isolated(
        "heavy = [name for name in ('torch', 'numpy', 'transformers', 'av') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert root.WEB_DIRECTORY == './web'\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..sampling import schedules", "ltx2_core.sampling"),
        ("from ..types import Phase", "ltx2_core.types"),
        ("from .. import types", "ltx2_core.types"),
        ("from ... import nodes", "nodes"),
        ("def f():\n    from ...device_manager import policy", "device_manager"),
    ],
)
def test_the_walk_resolves_relative_imports(source: str, expected: str) -> None:
    # Else a resolver that finds nothing would let every import pass.
    (name, inside), *more = imports_of(source, ("ltx2_core", "models"))
    assert inside and not more
    assert name == expected or name.startswith(expected + ".")
