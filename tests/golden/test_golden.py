"""Whole runs on tiny files against latents that were kept: no number changes unnoticed, by whatever refactoring."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from safetensors.torch import load_file

# Test modules in importlib mode have no package to import ``runs`` from
sys.path.append(str(Path(__file__).parent))
from runs import GOLDEN, KEPT, RUNS, Generation, latents

# Latents of order one, float32. Processors and thread counts add up in another order, and draw normal numbers by other
# approximations, which a few steps of a tiny model amplify to some 1e-5. A rule of another revision shows from 7e-3 on.
TOLERANCE = 1e-4
LARGEST_FILE = 300_000  # bytes; the repository keeps every version of it


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Generation, TinyFiles]:
    folder = tmp_path_factory.mktemp("tiny")
    variants: tuple[Generation, Generation] = ("2.0", "2.3")
    return {variant: write_tiny(folder / variant, variant, dtype="float32") for variant in variants}


@pytest.mark.parametrize("name", RUNS)
def test_latents_are_the_kept_ones(name: str, files: dict[Generation, TinyFiles]) -> None:
    run = RUNS[name]
    made = latents(run, files[run.generation])
    kept = {key.partition("/")[2]: tensor for key, tensor in load_file(GOLDEN).items() if key.startswith(f"{name}/")}
    assert made.keys() == kept.keys()
    for key, tensor in kept.items():
        assert tensor.std() > 0.1, key
        torch.testing.assert_close(
            made[key], tensor, rtol=0, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_the_runs_differ_and_the_file_holds_nothing_else() -> None:
    kept = load_file(GOLDEN)
    assert {key.partition("/")[0] for key in kept} == set(RUNS)
    assert {key.partition("/")[2] for key in kept} == set(KEPT)
    assert GOLDEN.stat().st_size < LARGEST_FILE
    first = {name: kept[f"{name}/stage1_video"] for name in RUNS if RUNS[name].choice.preset != "one-stage"}
    for name, tensor in first.items():
        others = [other for key, other in first.items() if key != name]
        assert all((tensor - other).abs().max() > 100 * TOLERANCE for other in others), name
