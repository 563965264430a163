"""Stacks of LoRAs and a given sound on a GPU, with real streams and pinned memory, on tiny files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_stacks import MODES, add, differences, open_pipeline, request_for, run, stack, write_other
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.types import AudioClip

pytestmark = pytest.mark.gpu
# Adapters on the fly add to a layer's output, merged ones to its weight: float32 rounding through both stages
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), dtype="float32")


@pytest.fixture(scope="module")
def other(tiny: TinyFiles) -> Path:
    return write_other(tiny)


def test_every_device_mode_gives_the_same_latents(cuda: torch.device, tiny: TinyFiles, other: Path) -> None:
    loras = stack(tiny, other)
    pipelines = {mode: open_pipeline(tiny, mode, *loras, device=cuda) for mode in MODES}
    texts = pipelines["original"].encode_prompt(request_for("two-stage"))
    results = {mode: run(pipeline, texts) for mode, pipeline in pipelines.items()}
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences(results["resident"], results[mode]).values()), mode
    assert max(differences(results["resident"], results["original"]).values()) < ROUNDING


@pytest.mark.parametrize("mode", MODES)
def test_changed_stacks_equal_freshly_opened_ones(cuda: torch.device, tiny: TinyFiles, other: Path, mode: str) -> None:
    """Stack after stack without a pause: what is still being copied for one is not lost to the next."""
    loaded = open_pipeline(tiny, mode, device=cuda)
    texts = loaded.encode_prompt(request_for("two-stage"))
    style, extra = LoRASource(tiny.lora, 0.7), LoRASource(other, 0.3, "1")
    stacks = ((style,), (style, extra), (), (extra, replace(style, strength=-0.2)), (extra,))
    changed = [run(add(loaded, *loras), texts) for loras in stacks]
    for loras, result in zip(stacks, changed, strict=True):
        fresh = run(open_pipeline(tiny, mode, *loras, device=cuda), texts)
        assert not any(differences(result, fresh).values()), loras


@pytest.mark.parametrize("sampler", ["euler", "gradient_estimation", "res_2s"])
def test_a_given_sound_stays_and_is_heard(cuda: torch.device, tiny: TinyFiles, sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = AudioClip(torch.randn(1, 1, 22050, generator=generator) * 0.2, 22050)
    request = request_for("two-stage")
    request = replace(request, audio=clip, recipe=replace(request.recipe, sampler=sampler))
    latents = open_pipeline(tiny, "resident", device=cuda).run(request, keep_latents=True).latents
    assert torch.equal(latents["stage1_audio"], latents["stage2_audio"])
    samples = round(request.seconds * 22050)
    assert torch.equal(latents["audio_waveform"], clip.waveform[:, :, :samples].expand(1, 2, -1))
    on_host = open_pipeline(tiny, "resident").run(request, keep_latents=True).latents
    # Another processor's float32 sums, and the logarithm of nearly empty bands in the sound
    assert (latents["stage1_audio"] - on_host["stage1_audio"]).abs().max() < 1e-2
