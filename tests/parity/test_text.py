"""Text projections and connectors against diffusers' LTX2TextConnectors with the same weights (docs/model.md 3).

Tolerance: 1e-5 absolute in float32 on outputs of order 1 to 4, as docs/model.md 11.3 has it. The two differ in how sums
are split (measured: below 1e-6); a wrong position or norm shows from 1e-2 on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
import diffusers_models
from diffusers_models import Generation
from ltx2_two_stage.ltx2_core.models.text.config import TextConfig
from ltx2_two_stage.ltx2_core.models.text.connector import TextConnector

TOLERANCE = 1e-5
LENGTH, WIDTH, STATES = 256, 24, 5

COMMON = {
    "caption_channels": WIDTH,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "connector_num_learnable_registers": 128,
    "connector_positional_embedding_max_pos": [4096],
}
METADATA: dict[str, dict[str, Any]] = {
    "2.0": {
        "connector_num_attention_heads": 3,
        "connector_attention_head_dim": 8,
        "connector_num_layers": 2,
    },
    "2.3": {
        "connector_num_attention_heads": 4,
        "connector_attention_head_dim": 16,
        "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 8,
        "connector_num_layers": 3,
        "connector_apply_gated_attention": True,
        "caption_proj_before_connector": True,
        "caption_projection_first_linear": False,
        "caption_projection_second_linear": False,
        "caption_proj_input_norm": False,
        "text_encoder_norm_type": "per_token_rms",
    },
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill_(module: nn.Module, seed: int) -> None:
    """Non-degenerate weights of docs/model.md 11.2."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "learnable_registers" in name:
                tensor.copy_(noise)
            elif name.endswith("norm.weight"):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(noise * (0.8 / tensor.shape[1] ** 0.5 if tensor.ndim > 1 else 0.3))


@cache
def connectors(generation: Generation, rope_type: str, float64: bool) -> tuple[TextConnector, nn.Module]:
    """Ours and diffusers' with the same weights."""
    precision = "float64" if float64 else "float32"
    metadata = {**COMMON, **METADATA[generation], "rope_type": rope_type, "frequencies_precision": precision}
    config = TextConfig.from_metadata({"transformer": metadata}, projection_inputs=WIDTH * STATES)
    ours = TextConnector(config).eval()
    fill_(ours, seed=1)
    oracle = diffusers_models.connectors(
        generation,
        caption_channels=WIDTH,
        text_proj_in_factor=STATES,
        **{
            f"{stream}_connector_{key}": getattr(getattr(config, stream), attribute)
            for stream in ("video", "audio")
            for key, attribute in (
                ("num_attention_heads", "heads"),
                ("attention_head_dim", "head_dim"),
                ("num_layers", "num_layers"),
                ("num_learnable_registers", "registers"),
            )
        },
        rope_double_precision=float64,
        rope_type=rope_type,
        video_hidden_dim=config.video.width,
        audio_hidden_dim=config.audio.width,
    )
    state = {diffusers_models.connectors_key(key): value for key, value in ours.state_dict().items()}
    oracle.load_state_dict(state, strict=True)
    return ours, oracle


@torch.no_grad()
def oracle_contexts(oracle: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    """diffusers' result for one prompt, left-padded with rows that must not matter."""
    n = len(states)
    padding = 50 * torch.randn(LENGTH - n, WIDTH, STATES, generator=seeded(9))
    mask = torch.cat((torch.zeros(LENGTH - n), torch.ones(n)))[None]
    video, audio, _ = oracle(torch.cat((padding, states))[None], mask.long())
    return video, audio


@pytest.mark.parametrize("n", [37, 128, 256])
@pytest.mark.parametrize(
    ("generation", "rope_type", "float64"),
    [("2.0", "split", True), ("2.3", "split", True), ("2.3", "interleaved", False)],
)
def test_connectors_equal_diffusers(generation: Generation, rope_type: str, float64: bool, n: int) -> None:
    ours, oracle = connectors(generation, rope_type, float64)
    # States of different size, as Gemma's are
    states = torch.randn(n, WIDTH, STATES, generator=seeded(n)) * torch.logspace(0, 2, STATES) + 0.5
    context = ours(states, LENGTH)
    video, audio = oracle_contexts(oracle, states)
    assert (context.video - video).abs().max() < TOLERANCE
    assert (context.audio - audio).abs().max() < TOLERANCE
    assert video.abs().max() > 1 and audio.abs().max() > 1


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_long_prompts_are_projected_in_chunks(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not divide the prompt give the same rows; 2e-6 for sums that are split otherwise: 10 units in the
    last place of the largest states, which a processor's own matrix kernels took up to (1.2e-6)."""
    from ltx2_two_stage.ltx2_core.models.text import features

    ours, _ = connectors(generation, "split", True)
    states = torch.randn(200, WIDTH, STATES, generator=seeded(3))
    whole = ours(states, LENGTH)
    monkeypatch.setattr(features, "TOKENS_AT_ONCE", 33)
    chunked = ours(states, LENGTH)
    torch.testing.assert_close(chunked.video, whole.video, atol=2e-6, rtol=0)
    torch.testing.assert_close(chunked.audio, whole.audio, atol=2e-6, rtol=0)
