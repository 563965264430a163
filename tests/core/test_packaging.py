"""The root folder is the package: what pyproject.toml promises must hold for any folder name and any way of import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:  # tomli comes with pytest on 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = {"tests", "benchmarks", "docs", "build", "dist"}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_names(text: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [re.split(r"[\s<>=!~;\[]", line)[0].lower().replace("_", "-") for line in lines if line]


def test_listed_packages_equal_the_tree(project: dict) -> None:
    folders = [
        path.parent.relative_to(ROOT)
        for path in ROOT.rglob("__init__.py")
        if not any(part.startswith(".") or part in NOT_SHIPPED for part in path.relative_to(ROOT).parts)
    ]
    tree = sorted(".".join(["ltx2_two_stage", *folder.parts]) for folder in folders)
    assert project["tool"]["setuptools"]["packages"] == tree
    assert project["tool"]["setuptools"]["package-dir"] == {"ltx2_two_stage": "."}


def test_every_code_folder_is_a_package() -> None:
    for top in ("ltx2_core", "device_manager", "nodes", "terminal"):
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has code but no __init__.py"


def test_users_of_the_nodes_keep_their_torch() -> None:
    names = requirement_names((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert names, "no requirement was read"
    assert not {"torch", "torchvision", "torchaudio", "triton", "diffusers"} & set(names)
    assert not any("==" in line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())


# The lowest versions in a ComfyUI of today whose packages nobody has updated: its own bounds, and those of transformers
OLDEST = {
    "transformers": "4.50.3",
    "huggingface-hub": "0.26.0",
    "tokenizers": "0.21",
    "safetensors": "0.4.3",
    "numpy": "1.25.0",
    "tqdm": "4.27",
    "sentencepiece": "0.2.0",
    "pillow": "10.0.0",
    "av": "16.0.0",
    "packaging": "20.0",
    "psutil": "5.9",
    "pyyaml": "5.1",
    "torch": "2.4",
}
ADDED = {"peft", "accelerate"}


def own_requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.split("#")[0].strip()]


def requirements_of(package: str) -> list[Requirement]:
    return [found for text in requires(package) or () if (found := Requirement(text)).marker is None]


def test_pip_raises_nothing_that_a_comfyui_has() -> None:
    """Neither for us nor for what comes along; and no version is too new."""
    for requirement in [*own_requirements(), *requirements_of("peft")]:
        name = requirement.name.lower().replace("_", "-")
        if name in ADDED:
            continue
        assert requirement.specifier.contains(OLDEST[name]), f"{requirement} raises {name} {OLDEST[name]}"
        assert not any(bound.operator in ("<", "<=", "==", "~=", "!=") for bound in requirement.specifier), requirement


def test_the_page_names_all_that_pip_adds() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in ADDED)
    floor = next(requirement for requirement in own_requirements() if requirement.name == "transformers")
    assert str(floor.specifier) == f">={OLDEST['transformers']}" and f"`transformers` {OLDEST['transformers']}" in text


def test_a_host_of_this_machine_accepts_us(comfyui: Any) -> None:
    """What its own list asks for is never below what we ask for, and its packages fit."""
    theirs = {}
    for line in (comfyui.folder / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if text := line.split("#")[0].strip():
            found = Requirement(text)
            theirs[found.name.lower().replace("_", "-")] = found
    for requirement in own_requirements():
        host = theirs.get(requirement.name.lower().replace("_", "-"))
        for bound in host.specifier if host else ():
            assert requirement.specifier.contains(bound.version), f"{requirement} is above {host}"


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_file_names_a_registry(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"index-url|find-links|https?://|git\+", text)


# Triton's interpreter is for development where a wheel exists; its tests are skipped elsewhere.
_MARKERS = {
    "triton": (['sys_platform == "linux" and platform_machine == "x86_64" and python_version >= "3.11"'],),
}


def test_constraints_pin_each_direct_dependency_for_every_python(project: dict) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wanted = {*requirement_names((ROOT / "requirements.txt").read_text(encoding="utf-8")), "torch"}
    wanted |= set(requirement_names("\n".join(project["project"]["optional-dependencies"]["dev"])))
    for name in sorted(wanted):
        markers = [line.partition(";")[2].strip() for line in pins if requirement_names(line) == [name]]
        assert markers in _MARKERS.get(name, ([""], ['python_version >= "3.11"', 'python_version < "3.11"'])), name


def test_version_is_the_newest_of_the_changelog(project: dict) -> None:
    versions = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == project["project"]["version"]


def test_registry_metadata(project: dict) -> None:
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] == "LTX-2 Two-Stage"
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    assert project["project"]["license"] == "Apache-2.0" and (ROOT / "LICENSE").is_file()
    assert re.fullmatch(r"[a-z][a-z0-9-]*", project["project"]["name"]) and "comfyui" not in project["project"]["name"]


@pytest.mark.parametrize(("key", "size"), [("Icon", (400, 400)), ("Banner", (1260, 540))])
def test_the_registrys_pictures_are_there_in_its_sizes(project: dict, key: str, size: tuple[int, int]) -> None:
    path = ROOT / project["tool"]["comfy"][key]
    with Image.open(path) as picture:
        assert picture.size == size and len(picture.convert("RGB").getcolors(1000) or ()) > 10
    assert path.stat().st_size < 100_000


def test_the_oldest_host_is_the_one_that_the_import_checks(project: dict) -> None:
    source = (ROOT / "nodes" / "host_version.py").read_text(encoding="utf-8")
    oldest = ".".join(re.findall(r"\d+", next(line for line in source.splitlines() if line.startswith("OLDEST"))))
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={oldest}"


def test_the_registrys_package_leaves_out_what_users_of_the_nodes_do_not_need() -> None:
    left_out = {line.rstrip("/") for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()}
    assert {"tests", "benchmarks", "docs/make", "Makefile"} <= left_out
    needed = {"__init__.py", "requirements.txt", "pyproject.toml", "LICENSE", "nodes", "ltx2_core", "device_manager"}
    assert not left_out & (needed | {"web", "workflows", "locales", "assembly.py"})
    assert all((ROOT / name).exists() for name in left_out if name and not name.startswith("#"))


def test_console_script_points_at_the_command_line(project: dict) -> None:
    module, function = project["project"]["scripts"]["ltx2"].split(":")
    assert module == "ltx2_two_stage.cli"
    assert re.search(rf"^def {function}\(", (ROOT / "cli.py").read_text(encoding="utf-8"), re.MULTILINE)


# What ComfyUI does with a folder of custom_nodes: the module's name is its path, dots replaced, and nothing but the
# package's own location finds the submodules.
COMFYUI_LOAD = """
import asyncio, importlib, importlib.util, os, sys
path = sys.argv[1]
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(path, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert asyncio.iscoroutinefunction(module.comfy_entrypoint)
assert os.path.isdir(os.path.join(path, module.WEB_DIRECTORY)) or not os.path.isdir(os.path.join(path, "web"))
recipes = importlib.import_module(name + ".ltx2_core.recipes")
assert recipes.official_recipe("two-stage", "2.3").steps == 30
assert importlib.import_module(name + ".device_manager").__file__.startswith(path)
assert "nodes" not in sys.modules and "ltx2_core" not in sys.modules and "ltx2_two_stage" not in sys.modules
"""


def test_loads_as_comfyui_loads_it_from_a_folder_with_hyphens_and_dots(tmp_path: Path) -> None:
    checkout = tmp_path / "custom_nodes" / "ComfyUI-LTX2-Two-Stage-0.1"
    checkout.parent.mkdir()
    checkout.symlink_to(ROOT, target_is_directory=True)
    done = subprocess.run([sys.executable, "-I", "-c", COMFYUI_LOAD, str(checkout)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EDITABLE_IMPORT = """
import pathlib, sys
import ltx2_two_stage, ltx2_two_stage.cli, ltx2_two_stage.ltx2_core.recipes
assert pathlib.Path(ltx2_two_stage.__file__).resolve().parent == pathlib.Path(sys.argv[1])
try:
    import ltx2_core
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the root leaked into sys.path: our nodes/ would shadow ComfyUI's")
"""


def test_editable_install_maps_the_package_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import ltx2_two_stage"], capture_output=True, text=True, cwd=tmp_path
    )
    if done.returncode:
        pytest.skip("not installed in this environment: make venv installs it")
    done = subprocess.run(
        [sys.executable, "-I", "-c", EDITABLE_IMPORT, str(ROOT)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    script = subprocess.run(
        [sys.executable, "-m", "ltx2_two_stage.cli", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert script.returncode == 0 and script.stdout.startswith("ltx2 "), script.stderr
