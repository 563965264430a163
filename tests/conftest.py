"""Loads the checkout under its one package name, whatever its folder is called, and finds a ComfyUI to test against."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ltx2_two_stage"


def _load_root_package() -> None:
    # The root on sys.path would let our `nodes` shadow ComfyUI's own `nodes` module.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


_load_root_package()


def _import_triton_for_its_interpreter() -> None:
    """Without a GPU Triton's own functions are made for its interpreter, which whoever imports it first decides."""
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")


_import_triton_for_its_interpreter()


# What a script in the host's Python begins with: the host on a CPU, and this checkout as the package ``pack``.
_IN_THE_HOST = """
import importlib.util, sys
root, host, *arguments = sys.argv[1:]
sys.path.insert(0, host)
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
"""


class ComfyUI(NamedTuple):
    """A real ComfyUI to test against, and the Python that has its packages."""

    folder: Path
    python: Path

    def run(self, script: str, *arguments: Path, working: Path) -> str:
        """What a script prints in the host's Python, in folder ``working``; its ``arguments`` are strings there."""
        done = subprocess.run(
            [str(self.python), "-c", _IN_THE_HOST + script, str(ROOT), str(self.folder), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=working,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self, script: str, *arguments: Path, working: Path) -> dict[str, Any]:
        """The JSON that a script prints in a line after FACTS."""
        lines = self.run(script, *arguments, working=working).splitlines()
        return dict(json.loads(next(line for line in lines if line.startswith("FACTS")).removeprefix("FACTS")))


def _comfyui_folders() -> Iterator[Path]:
    if named := os.environ.get("COMFYUI_PATH"):
        yield Path(named)
        return
    for parent in ROOT.parents:  # the checkout lies in custom_nodes, or beside a ComfyUI
        yield from (parent, parent / "ComfyUI")
    yield Path.home() / "comfy" / "ComfyUI"  # comfy-cli's workspace


def _comfyui_pythons(folder: Path) -> Iterator[Path]:
    if named := os.environ.get("COMFYUI_PYTHON"):
        yield Path(named)
        return
    for venv in (folder / ".venv", folder / "venv", folder.parent / ".venv", folder.parent / "venv"):
        yield from (venv / "bin" / "python", venv / "Scripts" / "python.exe")


def find_comfyui() -> ComfyUI | str:
    """The first ComfyUI found, or why there is none."""
    advice = (
        "install one into ~/comfy/ComfyUI with a virtual environment in .venv, or set COMFYUI_PATH to a checkout and "
        "COMFYUI_PYTHON to the Python that has its packages"
    )
    for folder in _comfyui_folders():
        if (folder / "main.py").is_file() and (folder / "comfy_api").is_dir():
            python = next((python for python in _comfyui_pythons(folder) if python.is_file()), None)
            return ComfyUI(folder, python) if python else f"{folder} has no virtual environment: {advice}"
    return f"no ComfyUI was found: {advice}"


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """A real ComfyUI; without one the test is skipped with a warning, or fails where REQUIRE_COMFYUI=1."""
    found = find_comfyui()
    if isinstance(found, ComfyUI):
        return found
    if os.environ.get("REQUIRE_COMFYUI") == "1":
        pytest.fail(f"REQUIRE_COMFYUI=1, but {found}")
    warnings.warn(f"the ComfyUI tests did NOT run: {found}", stacklevel=1)
    pytest.skip(found)


def _load_fake_hub() -> Any:
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake_hub() -> Iterator[Any]:
    """A server that answers as the Hugging Face Hub does; ``url`` is for the variable HF_ENDPOINT."""
    hub = _load_fake_hub().FakeHub()
    yield hub
    hub.close()
