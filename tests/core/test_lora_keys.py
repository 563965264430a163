"""Key layouts of LoRA files: normalised first, then each module sorted once, whatever the spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError, SettingError
from ltx2_two_stage.ltx2_core.limits import checked
from ltx2_two_stage.ltx2_core.loading.inspect import inspect_file
from ltx2_two_stage.ltx2_core.loading.lora import LoRAFile, check_fit
from ltx2_two_stage.terminal import values
from safetensors.torch import save_file
from torch import Tensor

TO_Q, TIME = "transformer_blocks.7.attn1.to_q", "adaln_single.linear"
LAYERS = {TO_Q: (6, 6), "transformer_blocks.7.attn1.to_out.0": (6, 6), TIME: (54, 6)}
DOWN, UP = torch.ones(2, 6), torch.ones(6, 2)
GOOD = {f"diffusion_model.{TO_Q}.lora_A.weight": DOWN, f"diffusion_model.{TO_Q}.lora_B.weight": UP}


def pair(module: str, ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")) -> dict[str, Tensor]:
    return {module + ends[0]: DOWN, module + ends[1]: UP}


def opened(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> LoRAFile:
    path = folder / "style.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return LoRAFile.open(path, "lora")


DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
LAYOUTS: dict[str, dict[str, Tensor]] = {
    "diffsynth": pair(TO_Q, DEFAULT),
    "diffsynth-with-prefix": pair(f"pipe.dit.{TO_Q}", DEFAULT),
    "adapter-of-any-name": pair(TO_Q, (".lora_A.my-style_2.weight", ".lora_B.my-style_2.weight")),
    "kohya-with-adapter": pair(TO_Q, (".lora_down.default.weight", ".lora_up.default.weight")),
    "peft": pair(f"base_model.model.{TO_Q}"),
    "peft-with-adapter": pair(f"base_model.model.{TO_Q}", DEFAULT),
    "peft-of-a-wrapped-model": pair(f"base_model.model.transformer.{TO_Q}"),
    "peft-of-the-hosts-model": pair(f"base_model.model.diffusion_model.{TO_Q}"),
    "whole-checkpoints-prefix": pair(f"model.diffusion_model.{TO_Q}"),
    "prefix-twice": pair(f"diffusion_model.transformer.{TO_Q}"),
    "compiled": pair(f"transformer._orig_mod.{TO_Q}"),
    "compiled-outside": pair(f"_orig_mod.transformer.{TO_Q}"),
    "data-parallel": pair(f"module.{TO_Q}"),
    "without-weight": pair(TO_Q, (".lora_A", ".lora_B")),
    "underscores": pair("lora_unet_transformer_blocks_7_attn1_to_q", DOWN_UP),
    "underscores-twice": pair("lora_unet__transformer_blocks_7_attn1_to_q", DOWN_UP),
    "lycoris": pair("lycoris_transformer_blocks_7_attn1_to_q", DOWN_UP),
    "onetrainer": pair("lora_transformer_transformer_blocks_7_attn1_to_q", DOWN_UP),
    "underscores-with-prefix": pair("lora_unet_diffusion_model_transformer_blocks_7_attn1_to_q", DOWN_UP),
    "underscores-a-b": pair("lora_unet_transformer_blocks_7_attn1_to_q"),
}


@pytest.mark.parametrize("tensors", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_names_the_same_layer(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    found = opened(tmp_path, tensors)
    assert set(found.targets) == {TO_Q} and not found.skipped and not found.unknown
    assert check_fit(found, LAYERS, "2.3") == ()
    assert set(found.read("cpu", torch.float32)) == {TO_Q}


@pytest.mark.parametrize(
    "written", ["transformer_blocks.7.attn1.to_out", "transformer.transformer_blocks.7.attn1.to_out.0"]
)
def test_the_attentions_output_has_two_names(tmp_path: Path, written: str) -> None:
    assert set(opened(tmp_path, pair(written)).targets) == {"transformer_blocks.7.attn1.to_out.0"}


# Modules in other parts of the model, in the spellings of trainers -> the part
OTHERS = {
    "text_encoders.gemma3_12b.transformer.model.layers.0.self_attn.q_proj": "text encoder",
    "text_encoder.model.layers.0.self_attn.q_proj": "text encoder",
    "text_encoder_2.layers.0.mlp.up_proj": "text encoder",
    "text_encoder2.layers.0.mlp.up_proj": "text encoder",
    "transformer.text_encoder.model.layers.0.self_attn.q_proj": "text encoder",
    "lora_te_model_layers_0_self_attn_q_proj": "text encoder",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text encoder",
    "te1.model.layers.0.self_attn.q_proj": "text encoder",
    "te_model_layers_0_self_attn_q_proj": "text encoder",
    "base_model.model.model.layers.3.self_attn.q_proj": "text encoder",
    "model.language_model.layers.3.mlp.gate_proj": "text encoder",
    "language_model.model.layers.3.mlp.gate_proj": "text encoder",
    "gemma3.layers.3.mlp.gate_proj": "text encoder",
    "lora_unet_model_layers_3_self_attn_q_proj": "text encoder",
    "text_embedding_projection.aggregate_embed": "text connector",
    "text_embedding_projection.video_aggregate_embed": "text connector",
    "diffusion_model.text_embedding_projection.audio_aggregate_embed": "text connector",
    "lora_unet_text_embedding_projection_aggregate_embed": "text connector",
    "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q": "text connector",
    "lora_unet_audio_embeddings_connector_transformer_1d_blocks_0_attn1_to_q": "text connector",
    "connectors.video_connector.transformer_blocks.0.attn1.to_q": "text connector",
    "audio_connector.transformer_blocks.0.attn1.to_q": "text connector",
    "connectors.text_proj_in": "text connector",
    "audio_text_proj_in": "text connector",
    "vae.decoder.conv_in.conv": "video VAE",
    "audio_vae.decoder.conv_in.conv": "audio VAE",
    "vocoder.vocoder.conv_pre": "vocoder",
}


@pytest.mark.parametrize(("module", "part"), OTHERS.items())
def test_other_parts_are_left_out_in_every_spelling_and_refused_alone(tmp_path: Path, module: str, part: str) -> None:
    for ends in (("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"), DEFAULT):
        extra = {f"{module}.{end.removeprefix('.')}": torch.ones(2, 2) for end in ends}
        found = opened(tmp_path, {**GOOD, **extra})
        assert set(found.targets) == {TO_Q} and len(found.skipped) == 1
        assert check_fit(found, LAYERS, "2.3") == found.notices
        assert "1 targets outside the diffusion transformer are left out" in found.notices[0]
        with pytest.raises(CheckpointError, match=f"changes the {part} only") as caught:
            opened(tmp_path, extra)
        assert "LTX-2.3" not in str(caught.value) and "LTX-2.0" not in str(caught.value)
    # Whatever kind of adapter it is there
    assert opened(tmp_path, {**GOOD, f"{module}.dora_scale": torch.ones(2)}).skipped


def test_several_other_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="changes the text connector and the text encoder only"):
        opened(tmp_path, pair("text_embedding_projection.aggregate_embed") | pair("lora_te_x"))


STRANGE = {
    "wan": ("blocks.0.self_attn.q", "names of a Wan video model"),
    "flux": ("double_blocks.0.img_attn.qkv", "names of a Flux or Hunyuan Video model"),
    "z-image": ("layers.22.attention.to_q", "layers.22.attention.to_q"),
    "fused": ("transformer_blocks.7.attn1.to_qkv", "attn1.to_qkv"),
    "no-path": ("lora_unet_transformer_blocks_7_attn9_to_q", "transformer_blocks.7.attn9_to_q"),
    "markup": ("<img src=x onerror=alert(1)>", "img src"),
    "escape": ("blocks\x1b[2J.q", "blocks"),
}


@pytest.mark.parametrize(("module", "words"), STRANGE.values(), ids=STRANGE.keys())
@pytest.mark.parametrize("good", [True, False], ids=["beside-good", "alone"])
def test_unknown_names_are_refused_by_name_and_not_by_generation(
    tmp_path: Path, module: str, words: str, good: bool
) -> None:
    found = opened(tmp_path, {**(GOOD if good else {}), **pair(module)}, {"model_version": "2.3.0"})
    assert len(found.unknown) == 1
    with pytest.raises(CheckpointError, match="1 are layers of no LTX-2 transformer") as caught:
        check_fit(found, LAYERS, "2.3")
    assert words in str(caught.value) and "made for" not in str(caught.value)
    assert "<" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert "layers of no LTX-2 transformer" in inspect_file(found.path).to_text()


LIMITS = {
    ".lora.down.weight": ".lora.down",
    "_lora.up.weight": ".lora.down, .lora.up",
    ".lora_linear_layer.down.weight": ".lora.down",
    ".lora_a": ".lora_a",
    ".lora_b.weight": ".lora_a",
    ".diff": "full weight differences",
    ".diff_b": "bias differences",
    ".set_weight": "whole weights",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector.default.weight": "DoRA",
    ".lora_B.bias": "LoRA biases",
    ".lora_B.default.bias": "LoRA biases",
    ".lora_up.bias": "LoRA biases",
    ".lora_mid.weight": "LoCon",
    ".hada_w2_b": "LoHa",
    ".hada_t1": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w2_a": "LoKr",
    ".lokr_t2": "LoKr",
    ".oft_blocks": "OFT",
    ".a1.weight": "GLoRA",
    ".w_norm": "norm differences",
    ".b_norm": "norm differences",
    ".on_input": "IA3",
    ".reshape_weight": "reshaped",
    ".weight": "whole weights",
    ".bias": "whole weights",
}


@pytest.mark.parametrize(("end", "words"), LIMITS.items())
def test_other_kinds_of_adapters_are_named(tmp_path: Path, end: str, words: str) -> None:
    key = f"diffusion_model.{TO_Q}{end}"
    with pytest.raises(CheckpointError, match="which are not supported") as caught:
        opened(tmp_path, {**GOOD, key: torch.ones(2, 2)})
    assert words in str(caught.value) and key in str(caught.value)


def test_two_adapters_in_one_file_are_named(tmp_path: Path) -> None:
    both = pair(TO_Q, DEFAULT) | pair(TO_Q, (".lora_A.other.weight", ".lora_B.other.weight"))
    with pytest.raises(CheckpointError, match=r"same matrix twice in several adapters \('default', 'other'\)"):
        opened(tmp_path, both)


@pytest.mark.parametrize(
    ("down", "up", "words"),
    [
        ((0, 6), (6, 0), "do not fit"),
        ((2, 0), (6, 2), "do not fit"),
        ((2, 6), (0, 2), "do not fit"),
        ((2,), (6, 2), "matrices that are none"),
        ((2, 6), (), "matrices that are none"),
        ((2, 6, 1), (6, 2), "convolution"),
    ],
)
def test_shapes_that_are_no_matrices(tmp_path: Path, down: tuple[int, ...], up: tuple[int, ...], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path, {f"{TIME}.lora_A.weight": torch.ones(down), f"{TIME}.lora_B.weight": torch.ones(up)})


BAD_NUMBERS = [
    ("A", float("nan")),
    ("A", float("inf")),
    ("B", float("-inf")),
    ("B", float("nan")),
    ("alpha", float("nan")),
]


@pytest.mark.parametrize(("where", "value"), BAD_NUMBERS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_found_when_matrices_are_read(
    tmp_path: Path, where: str, value: float, stored: torch.dtype
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in {**GOOD, **pair(f"diffusion_model.{TIME}")}.items()}
    key = f"diffusion_model.{TO_Q}.alpha" if where == "alpha" else f"diffusion_model.{TO_Q}.lora_{where}.weight"
    tensors[key] = (
        torch.full((), value, dtype=stored)
        if where == "alpha"
        else tensors[key].clone().index_fill_(1, torch.tensor(1), value)
    )
    found = opened(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        found.read("cpu", torch.bfloat16)
    message = str(caught.value)
    assert message.startswith("lora = ") and TO_Q in message and TIME not in message
    assert "Use a sound copy" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bfloat16, torch.float64])
def test_an_alpha_may_be_a_whole_number(tmp_path: Path, dtype: torch.dtype) -> None:
    for shape in ((), (1,)):
        found = opened(tmp_path, {**GOOD, f"diffusion_model.{TO_Q}.alpha": torch.full(shape, 6, dtype=dtype)})
        assert found.read("cpu", torch.float32)[TO_Q].alpha == 6.0


def test_an_alpha_of_another_dtype_is_refused_from_the_header(tmp_path: Path) -> None:
    alpha = torch.ones((), dtype=torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="an alpha of a dtype that is not read"):
        opened(tmp_path, {**GOOD, f"diffusion_model.{TO_Q}.alpha": alpha})


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_a_block_that_no_generation_has_is_not_blamed_on_one(tmp_path: Path, generation: str) -> None:
    found = opened(tmp_path, {**GOOD, **pair("diffusion_model.transformer_blocks.99.attn1.to_q")})
    with pytest.raises(CheckpointError, match=r"1 of its 2 targets fit.*1 are no layers of it") as caught:
        check_fit(found, LAYERS, generation)
    assert "looks like" not in str(caught.value) and "an LTX-" not in str(caught.value)


def test_numbers_too_large_for_the_models_dtype_are_found(tmp_path: Path) -> None:
    found = opened(tmp_path, {name: tensor * 1e6 for name, tensor in GOOD.items()})
    assert found.read("cpu", torch.bfloat16)
    with pytest.raises(CheckpointError, match="not finite in float16"):
        found.read("cpu", torch.float16)


@pytest.mark.parametrize("value", [1e30, -1e30, float("inf")])
def test_an_alpha_without_measure_is_refused(tmp_path: Path, value: float) -> None:
    found = opened(tmp_path, {**GOOD, f"diffusion_model.{TO_Q}.alpha": torch.tensor(value)})
    with pytest.raises(CheckpointError, match="has an alpha of"):
        found.read("cpu", torch.float32)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 100.5, -101, 1e300, 10**400, "1", True, None]
)
def test_strengths_are_numbers_within_bounds(value: object) -> None:
    with pytest.raises(SettingError, match="must be"):
        checked("lora strength", value)  # type: ignore[arg-type]
    assert [checked("lora strength", good) for good in (0, -100, 100.0)] == [0, -100, 100]


@pytest.mark.parametrize("text", ["a:nan", "a:inf", "a:1e400", "a:101", "a:-1e9:2", "a:" + "9" * 400])
def test_strengths_on_the_command_line(text: str) -> None:
    with pytest.raises(SettingError):
        values.lora(text)
    with pytest.raises(SettingError):
        values.strength_pair(f"0,{text[2:].partition(':')[0]}")
    assert values.lora("a:-2.5:1").strength == -2.5 and values.strength_pair("0,100") == (0, 100)


def test_keys_of_any_length_are_read(tmp_path: Path) -> None:
    """In steps that grow with the length: with its square they would not end before the test's limit."""
    for key in ("a" * 1_000_000, ".lora_A" * 100_000, "transformer." * 50_000, "." * 500_000, "lora_unet_" * 50_000):
        with pytest.raises(CheckpointError) as caught:
            check_fit(
                opened(tmp_path, {**GOOD, f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP}), LAYERS, "2.3"
            )
        assert len(str(caught.value)) < 1500
