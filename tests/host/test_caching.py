"""What ComfyUI runs again after a change, counted by the nodes that ran, in each of its ways to keep results."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_graphs import Prompt, loader, node
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

PROMPT: Prompt = {
    "loader": loader(),
    "text": node("LTX2TwoStageTextEncode", pipeline=["loader", 0], prompt="A kite rises.", negative_prompt="dull"),
    "stage1": node(
        "LTX2TwoStageDenoise",
        pipeline=["loader", 0],
        positive=["text", 0],
        negative=["text", 1],
        preset="two-stage",
        width=128,
        height=64,
        frames=9,
        fps=24.0,
        seed=71,
        steps=2,
    ),
    "up": node("LTX2TwoStageUpsample", pipeline=["stage1", 0], latent=["stage1", 1]),
    "switch": node("LTX2TwoStageLoRASwitch", pipeline=["stage1", 0], stage="stage 2", strength=1.0),
    "stage2": node(
        "LTX2TwoStageRefine", pipeline=["switch", 0], positive=["text", 0], latent=["up", 0], audio_source="preset"
    ),
    "split": node("LTXVSeparateAVLatent", av_latent=["stage2", 1]),
    "video": node("SaveLatent", samples=["split", 0], filename_prefix="caching"),
}
STAGE_2 = {"switch", "stage2", "split", "video"}
STAGE_1 = {"stage1", "up", *STAGE_2}
# What is changed -> node, input, value, and what has to run again
CHANGES: dict[str, tuple[str, str, Any, set[str]]] = {
    "prompt": ("text", "prompt", "A kite sinks.", {"text", *STAGE_1}),
    "negative prompt": ("text", "negative_prompt", "grey", {"text", *STAGE_1}),
    "seed": ("stage1", "seed", 72, STAGE_1),
    "size": ("stage1", "height", 128, STAGE_1),
    "refine strength": ("switch", "strength", 0.5, STAGE_2),
    "audio source": ("stage2", "audio_source", "stage2", STAGE_2 - {"switch"}),
}
ASKED = ("prompt", "seed", "refine strength")  # of them, in each mode
# Prompts that are encoded together are padded to one length, and which those are, depends on what is known already:
# float32 rounding of the embeddings, of which the steps make up to 1e-6 in a latent of up to 4
ROUNDING = 1e-5
# A way to keep results, and other options that change where models lie
MODES = {
    "classic": ("--cache-classic", "--disable-dynamic-vram"),
    "lru": ("--cache-lru", "100", "--lowvram"),
    "none": ("--cache-none",),
}


def changed(name: str) -> Prompt:
    key, setting, value, _ = CHANGES[name]
    prompt = copy.deepcopy(PROMPT)
    prompt[key]["inputs"][setting] = value
    return prompt


def latent(files: dict[str, list[Path]]) -> Tensor:
    return load_file(files["video"][0])["latent_tensor"]


@pytest.fixture(scope="module")
def others(host: Any, start_host: Callable[..., Any]) -> dict[str, Any]:  # noqa: ARG001 - is started first
    """A host for every mode; they start side by side."""
    return {name: start_host(*options) for name, options in MODES.items()}


@pytest.fixture(scope="module")
def expected(host: Any) -> dict[str, Tensor]:
    """The latent after each change, as the host makes it when nothing is kept from before."""
    latents = {name: latent(host.run(changed(name))) for name in CHANGES}
    for name, found in latents.items():
        others = [other for key, other in latents.items() if key != name and other.shape == found.shape]
        assert all((found - other).abs().max() > 10 * ROUNDING for other in others), name
    return latents


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_runs_its_node_and_what_comes_after(host: Any, expected: dict[str, Tensor], name: str) -> None:
    host.run(PROMPT)
    assert host.ran(PROMPT)[0] == set(), "nothing changed"
    ran, files = host.ran(changed(name))
    # ComfyUI may have kept the result of the fixture's run; what it runs is what the change reaches, and no more
    assert ran <= CHANGES[name][3]
    if files:
        assert torch.equal(latent(files), expected[name])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_every_cache_runs_what_a_change_reaches_and_no_more(
    others: dict[str, Any], expected: dict[str, Tensor], mode: str
) -> None:
    host = others[mode]
    host.wait_until_up()
    assert host.ran(PROMPT)[0] == PROMPT.keys()
    assert host.ran(PROMPT)[0] == set()
    for name in ASKED:
        host.run(PROMPT)
        ran, files = host.ran(changed(name))
        assert ran == CHANGES[name][3], name
        assert (latent(files) - expected[name]).abs().max() < ROUNDING, name
    assert host.log.count("opened the models") == 1
    assert "Traceback" not in host.log


def test_without_a_cache_everything_runs_on_models_that_stay(
    others: dict[str, Any], expected: dict[str, Tensor]
) -> None:
    host = others["none"]
    host.wait_until_up()
    for name in ("seed", "refine strength", "refine strength"):
        ran, files = host.ran(changed(name))
        assert ran == PROMPT.keys()
        assert (latent(files) - expected[name]).abs().max() < ROUNDING
    assert host.log.count("opened the models") == 1
    assert host.log.count("loaded Gemma") <= 1
    assert "Traceback" not in host.log
