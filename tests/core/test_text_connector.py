"""What the metadata decides in the text connectors, and how they refuse what they cannot run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import ConfigError
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import Variant, full_size_config
from ltx2_two_stage.ltx2_core.models.text.config import TextConfig
from ltx2_two_stage.ltx2_core.models.text.connector import TEXT_TOKENS, TextConnector
from torch import Tensor

WIDTH, STATES, REGISTERS = 24, 5, 64
TINY: dict[str, Any] = {
    "caption_channels": WIDTH,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "connector_num_attention_heads": 3,
    "connector_attention_head_dim": 8,
    "connector_num_layers": 2,
    "connector_num_learnable_registers": REGISTERS,
    "connector_positional_embedding_max_pos": [4096],
}
NEWER = {
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 4,
    "caption_proj_before_connector": True,
    "connector_apply_gated_attention": True,
}


def read(inputs: int | None = WIDTH * STATES, **changes: Any) -> TextConfig:
    values = {key: value for key, value in (TINY | changes).items() if value is not ...}
    return TextConfig.from_metadata({"transformer": values}, inputs)


def connector(**changes: Any) -> TextConnector:
    model = TextConnector(read(**changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(0.2, 0.3, generator=generator)
    return model


def states(n: int) -> Tensor:
    return torch.randn(n, WIDTH, STATES, generator=torch.Generator().manual_seed(n))


# docs/model.md 1.2 and 10: connectors have 2 x 129 and 2 x 29 tensors.
@pytest.mark.parametrize(
    ("variant", "per_connector", "projection", "video", "audio", "projections"),
    [
        ("2.0", 29, 1, 354_470_400, 354_470_400, 722_534_400),
        ("2.3", 129, 4, 1_612_546_304, 403_620_096, 770_707_456 + 385_353_728),
    ],
)
def test_full_size_counts(
    variant: Variant, per_connector: int, projection: int, video: int, audio: int, projections: int
) -> None:
    config = full_size_config(variant)
    with torch.device("meta"):
        model = TextConnector(TextConfig.from_metadata(config, projection_inputs=188160))
    keys = list(model.state_dict())
    assert sum(key.startswith("video_embeddings_connector.") for key in keys) == per_connector
    assert sum(key.startswith("audio_embeddings_connector.") for key in keys) == per_connector
    assert sum(key.startswith("text_embedding_projection.") for key in keys) == projection
    assert len(keys) == 2 * per_connector + projection
    for name, count in (
        ("video_embeddings_connector", video),
        ("audio_embeddings_connector", audio),
        ("text_embedding_projection", projections),
    ):
        assert sum(tensor.numel() for tensor in model.get_submodule(name).parameters()) == count
    assert model.config.num_states == 49
    assert TextConfig.from_metadata(config) == model.config


def test_audio_falls_back_to_the_video_values() -> None:
    config = read()
    assert config.audio == config.video
    newer = read(**NEWER)
    assert (newer.audio.heads, newer.audio.head_dim, newer.audio.num_layers) == (2, 4, 2)
    assert newer.audio.gated_attention and newer.projection_per_stream


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"caption_channels": ...}, "caption_channels"),
        ({"connector_num_layers": ...}, "connector_num_layers"),
        ({"connector_num_attention_heads": "3"}, "connector_num_attention_heads"),
        ({"connector_num_attention_heads": 4}, "connector_num_attention_heads"),
        ({"connector_attention_head_dim": 7}, "connector_attention_head_dim"),
        ({"connector_num_learnable_registers": 96}, "connector_num_learnable_registers"),
        ({"connector_num_learnable_registers": ...}, "connector_num_learnable_registers"),
        ({"connector_positional_embedding_max_pos": ...}, "connector_positional_embedding_max_pos"),
        ({"connector_positional_embedding_max_pos": [20, 2048]}, "connector_positional_embedding_max_pos"),
        ({"rope_type": "spiral"}, "rope_type"),
        ({"rope_type": ...}, "rope_type"),
        ({"frequencies_precision": ...}, "frequencies_precision"),
        ({"use_embeddings_connector": False}, "use_embeddings_connector"),
        ({"connector_ff_bias": False}, "connector_ff_bias"),
        ({"caption_projection_first_linear": True}, "caption_projection_first_linear"),
        ({"text_encoder_norm_type": "per_token_rms"}, "text_encoder_norm_type"),
        ({**NEWER, "text_encoder_norm_type": "layer"}, "text_encoder_norm_type"),
        ({"audio_connector_num_attention_heads": 2}, "audio_connector_num_attention_heads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_metadata_that_cannot_work_is_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert caught.value.key == f"transformer.{key}"


@pytest.mark.parametrize("inputs", [WIDTH * STATES + 1, WIDTH, 0])
def test_projection_that_does_not_fit_the_text_encoder(inputs: int) -> None:
    with pytest.raises(ConfigError, match=r"caption_channels.*text projection"):
        read(inputs)


@pytest.mark.parametrize("newer", [{}, NEWER], ids=["2.0", "2.3"])
def test_prompt_comes_first_and_registers_follow_by_absolute_position(newer: dict[str, Any]) -> None:
    model, seen = connector(**newer), []
    block = model.video_embeddings_connector.transformer_1d_blocks[0]
    block.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    context = model(states(37), length=2 * REGISTERS)
    assert context.video.shape == (1, 2 * REGISTERS, model.config.video.width)
    assert context.audio.shape == (1, 2 * REGISTERS, model.config.audio.width)
    registers = model.video_embeddings_connector.learnable_registers
    for position in (37, REGISTERS - 1, REGISTERS, 2 * REGISTERS - 1):
        assert torch.equal(seen[0][0, position], registers[position % REGISTERS])
    features, _ = model.text_embedding_projection(states(37))
    assert torch.equal(seen[0][0, :37], features)


def test_every_state_and_token_matters() -> None:
    for model in (connector(), connector(**NEWER)):
        before = model(states(20), length=REGISTERS)
        for index in (0, STATES - 1):
            changed = states(20)
            changed[3, :, index] *= torch.linspace(-1, 1, WIDTH)
            after = model(changed, length=REGISTERS)
            assert (after.video - before.video).abs().max() > 1e-3
            assert (after.audio - before.audio).abs().max() > 1e-3


def test_default_length_is_the_text_length() -> None:
    assert connector()(states(2)).video.shape == (1, TEXT_TOKENS, WIDTH)


def test_states_are_computed_in_the_dtype_of_the_weights() -> None:
    model = connector(**NEWER)
    exact = model(states(9), length=REGISTERS)
    rounded = model.to(torch.bfloat16)(states(9), length=REGISTERS)
    assert rounded.video.dtype == rounded.audio.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: 0.4% per operation, some 30 operations deep
    for a, b in ((exact.video, rounded.video), (exact.audio, rounded.audio)):
        assert (a - b.float()).norm() / a.norm() < 0.05


@pytest.mark.parametrize("length", [100, REGISTERS + 1])
def test_length_must_hold_whole_sets_of_registers(length: int) -> None:
    with pytest.raises(ConfigError, match="connector_num_learnable_registers"):
        connector()(states(3), length=length)


@pytest.mark.parametrize(
    "shape", [(REGISTERS + 1, WIDTH, STATES), (0, WIDTH, STATES), (3, STATES, WIDTH), (1, 3, WIDTH, STATES)]
)
def test_states_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        connector()(torch.zeros(shape), length=REGISTERS)


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_loads_from_the_meta_device(variant: str) -> None:
    """Nothing that the file lacks may stay on the meta device."""
    newer = NEWER if variant == "2.3" else {}
    source = connector(**newer)
    with torch.device("meta"):
        model = TextConnector(read(**newer))
    model.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert torch.equal(model(states(5), REGISTERS).video, source(states(5), REGISTERS).video)
