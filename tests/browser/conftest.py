"""A running ComfyUI whose page is open in a Chromium without a window."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Test modules in importlib mode have no package to import these from
sys.path.append(str(HERE))

from chromium import Page, browser, find_chromium  # noqa: E402

# The host's colours are for the 128 channels of the released models; the tiny ones have 16.
TINY_COLOURS = """
import comfy.latent_formats

class TinyColours(comfy.latent_formats.LTXAV):
    latent_channels = 16

    def __init__(self):
        super().__init__()
        self.latent_rgb_factors = [[3 * value for value in row] for row in self.latent_rgb_factors[:16]]

comfy.latent_formats.LTXAV = TinyColours
NODE_CLASS_MAPPINGS = {}
"""


def _host_tests() -> Any:
    """The module that knows how to start a ComfyUI with tiny files: the other folder's conftest."""
    spec = importlib.util.spec_from_file_location("ltx2_host_conftest", HERE.parent / "host" / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium; without one the test is skipped with a warning, or fails where REQUIRE_BROWSER=1."""
    found = find_chromium()
    if found is not None:
        return found
    problem = "no Chromium was found: install one, or set CHROMIUM to its program"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, but {problem}")
    warnings.warn(f"the browser tests did NOT run: {problem}", stacklevel=1)
    pytest.skip(problem)


@pytest.fixture(scope="session")
def host(
    chromium: str,  # noqa: ARG001 - without it no host has to start
    comfyui: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """ComfyUI with this pack, tiny files, and settings of a user who has seen the page before and wants previews."""
    tests = _host_tests()
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / tests.PACK).symlink_to(tests.ROOT, target_is_directory=True)
    (base / "custom_nodes" / "tiny_colours.py").write_text(TINY_COLOURS)
    (base / "input").mkdir()
    tests._place_files(base, tmp_path_factory.mktemp("tiny"))
    running = tests.Host(comfyui.folder, comfyui.python, base)
    try:
        running.wait_until_up()
        running.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Execution.PreviewMethod": "auto"})
        yield running
    finally:
        running.stop()


@pytest.fixture
def page(chromium: str, host: Any, tmp_path: Path) -> Iterator[Page]:
    """The host's page, loaded, at a common size."""
    with browser(chromium, tmp_path / "profile") as opened:
        opened.resize(1440, 900)
        opened.open(host.url)
        opened.wait_for("window.app?.vueAppReady && !!app.canvas")
        yield opened
        errors = [error for error in opened.errors if "ltx2" in error.lower()]
        assert not errors, errors
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
