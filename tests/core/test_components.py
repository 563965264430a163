"""The table of components is the one place that lists them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.components import COMPONENTS, PARTS, SECTIONS, weight_dtype
from ltx2_two_stage.ltx2_core.loading.synthetic import full_size_config, tiny_config
from ltx2_two_stage.ltx2_core.models.meta_device import OnMeta
from ltx2_two_stage.ltx2_core.types import Component

ROOT = Path(__file__).resolve().parents[2]
MOST_NAMED = 3  # components in one literal outside the table: a stage may name those that it uses


def test_every_component_but_the_text_encoder_has_a_row() -> None:
    assert set(COMPONENTS) == set(Component) - {Component.TEXT_ENCODER}
    assert set(PARTS) == set(COMPONENTS) - {Component.UPSAMPLER}
    assert SECTIONS == {
        "transformer": "checkpoint",
        "vae": "video-vae",
        "audio_vae": "audio-vae",
        "vocoder": "audio-vae",
    }


@pytest.mark.parametrize("component", PARTS)
@pytest.mark.parametrize("config", [tiny_config("2.3"), full_size_config("2.0")], ids=["tiny 2.3", "2.0"])
def test_a_row_makes_a_module_whose_tensors_it_finds_in_an_official_file(config: dict, component: Component) -> None:
    row = COMPONENTS[component]
    with OnMeta():
        described = row.read(config, {})
        names = list(row.make(described).state_dict())
    assert names
    assert all(any(name.startswith(move.to) for move in row.moves) for name in names)
    children = {count: count.found_in(names) for count in row.counts(described)}
    assert children == {count: count.value + count.more for count in children}


def test_only_the_vocoder_has_a_dtype_of_its_own() -> None:
    own = {component for component in Component if weight_dtype(component, torch.bfloat16) is not torch.bfloat16}
    assert own == {Component.VOCODER} and weight_dtype(Component.VOCODER, torch.bfloat16) is torch.float32


def _most_in_one_display(path: Path) -> int:
    """The largest number of components that one tuple, list, set or dictionary of a module names."""
    displays = (ast.Tuple, ast.List, ast.Set, ast.Dict)
    found = [0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, displays):
            items = node.keys if isinstance(node, ast.Dict) else node.elts
            named = [i for i in items if isinstance(i, ast.Attribute) and ast.unparse(i.value) == "Component"]
            found.append(len(named))
    return max(found)


def test_no_other_table_lists_components() -> None:
    folders = [ROOT / name for name in ("ltx2_core", "nodes", "terminal", "device_manager", "benchmarks")]
    files = [*(path for folder in folders for path in folder.rglob("*.py")), ROOT / "assembly.py"]
    lists = {path.relative_to(ROOT).as_posix(): _most_in_one_display(path) for path in files}
    longest = {path for path, most in lists.items() if most > MOST_NAMED}
    # The second has how many tensors each has in either release
    assert longest == {"ltx2_core/components.py", "ltx2_core/loading/derived_config.py"}
