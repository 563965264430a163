"""LoRA: every key format gives the same change, peft's equals merged weights, and files that cannot fit are refused."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError
from ltx2_two_stage.ltx2_core.loading.lora import (
    LoRAFile,
    check_fit,
    delta_weight,
    inject,
    linear_layers,
    set_adapters,
)
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import full_size_config, tiny_config
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

TOLERANCE = 1e-5  # float32: W x + s B (A x) against (W + s B A) x, the same sums in another order, outputs of O(1)

# Official name, diffusers' name, (out, in), rank. The ranks differ and are capped at the smaller side.
LAYERS = (
    ("patchify_proj", "proj_in", (24, 6), 6),
    ("audio_patchify_proj", "audio_proj_in", (12, 4), 4),
    ("adaln_single.linear", "time_embed.linear", (9 * 24, 24), 8),
    ("adaln_single.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_1", (24, 16), 8),
    ("audio_prompt_adaln_single.linear", "audio_prompt_adaln.linear", (24, 12), 8),
    ("av_ca_a2v_gate_adaln_single.linear", "av_cross_attn_video_a2v_gate.linear", (24, 24), 8),
    (
        "av_ca_audio_scale_shift_adaln_single.linear",
        "av_cross_attn_audio_scale_shift.linear",
        (48, 12),
        8,
    ),
    ("transformer_blocks.0.attn1.to_q", None, (24, 24), 8),
    ("transformer_blocks.0.attn1.to_out.0", None, (24, 24), 8),
    ("transformer_blocks.0.attn1.to_gate_logits", None, (2, 24), 2),
    ("transformer_blocks.10.audio_to_video_attn.to_k", None, (12, 12), 8),
    ("transformer_blocks.10.ff.net.0.proj", None, (96, 24), 8),
    ("transformer_blocks.10.audio_ff.net.2", None, (12, 48), 8),
    ("proj_out", None, (6, 24), 6),
)
DIFFUSERS = {official: theirs or official for official, theirs, _, _ in LAYERS}


def tiny_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    root = nn.Module()
    for name, _, (out, inputs), _ in LAYERS:
        parent = root
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        layer = nn.Linear(inputs, out)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(out, inputs, generator=generator) * 0.8 / math.sqrt(inputs))
            layer.bias.copy_(torch.randn(out, generator=generator) * 0.3)
        parent.add_module(last, layer)
    return root.to(dtype).eval().requires_grad_(False)


@dataclass
class Matrices:
    down: Tensor
    up: Tensor
    alpha: float | None = None


def matrices(seed: int = 1, alpha: Callable[[int], float] | None = None) -> dict[str, Matrices]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Matrices(
            torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs),
            torch.randn(out, rank, generator=generator) / math.sqrt(rank),
            alpha(rank) if alpha else None,
        )
        for name, _, (out, inputs), rank in LAYERS
    }


def tensors(
    found: Mapping[str, Matrices],
    rename: Callable[[str], str],
    ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
) -> dict[str, Tensor]:
    stored = {}
    for name, entry in found.items():
        stored[rename(name) + ends[0]], stored[rename(name) + ends[1]] = entry.down, entry.up
        if entry.alpha is not None:
            stored[rename(name) + ".alpha"] = torch.tensor(entry.alpha)
    return stored


def write(path: Path, stored: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.clone() for key, value in stored.items()}, path, metadata)
    return path


def merged_weights(model: nn.Module, found: Mapping[str, Matrices], strength: float) -> dict[str, Tensor]:
    """The definition, in float64: W + s * alpha / r * B A (docs/model.md 9.2 and 9.3)."""
    result = {}
    for name, entry in found.items():
        rank = entry.down.shape[0]
        scale = strength * (1.0 if entry.alpha is None else entry.alpha / rank)
        result[name] = model.get_submodule(name).weight.double() + scale * entry.up.double() @ entry.down.double()
    return result


def outputs(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [model.get_submodule(name)(torch.randn(3, size[1], generator=generator)) for name, _, size, _ in LAYERS]


def largest_difference(model: nn.Module, weights: Mapping[str, Tensor]) -> float:
    generator = torch.Generator().manual_seed(7)
    worst = 0.0
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        x = torch.randn(2, 5, weight.shape[1], generator=generator)
        expected = nn.functional.linear(x.double(), weight, layer.bias.double())
        worst = max(worst, float((layer(x).double() - expected).abs().max()))
    return worst


DOWN_UP = (".lora_down.weight", ".lora_up.weight")
FORMATS: dict[str, tuple[Callable[[str], str], tuple[str, str]]] = {
    "official": (lambda n: f"diffusion_model.{n}", (".lora_A.weight", ".lora_B.weight")),
    "official-down-up": (lambda n: f"diffusion_model.{n}", DOWN_UP),
    "full-prefix": (lambda n: f"model.diffusion_model.{n}", (".lora_A.weight", ".lora_B.weight")),
    "bare": (lambda n: n, (".lora_A.weight", ".lora_B.weight")),
    "peft-saved": (lambda n: f"base_model.model.{n}", (".lora_A.weight", ".lora_B.weight")),
    "diffusers": (lambda n: f"transformer.{DIFFUSERS[n]}", (".lora_A.weight", ".lora_B.weight")),
    "underscores": (lambda n: f"lora_unet_{n.replace('.', '_')}", DOWN_UP),
    "underscores-of-diffusers": (lambda n: f"lora_unet_{DIFFUSERS[n].replace('.', '_')}", DOWN_UP),
}


@pytest.mark.parametrize("alpha", [None, lambda rank: 0.5 * rank, lambda _: 3.0], ids=["none", "half", "three"])
@pytest.mark.parametrize(("rename", "ends"), FORMATS.values(), ids=FORMATS.keys())
def test_every_format_equals_merged_weights(
    tmp_path: Path, rename: Callable[[str], str], ends: tuple[str, str], alpha: Callable[[int], float] | None
) -> None:
    model, found = tiny_model(), matrices(alpha=alpha)
    lora = LoRAFile.open(write(tmp_path / "lora.safetensors", tensors(found, rename, ends)), "lora")
    assert set(lora.targets) == set(found)
    expected = merged_weights(model, found, 0.7)
    assert largest_difference(model, expected) > 0.1  # without the LoRA the test would fail
    inject(model, [("style", lora)])
    set_adapters(model, {"style": 0.7})
    assert largest_difference(model, expected) < TOLERANCE


def test_strengths_change_without_a_weight_being_written(tmp_path: Path) -> None:
    model, first, second = tiny_model(), matrices(1), matrices(2, alpha=lambda _: 4.0)
    base, plain = merged_weights(model, first, 0.0), outputs(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    files = [
        LoRAFile.open(write(tmp_path / f"{i}.safetensors", tensors(m, lambda n: f"diffusion_model.{n}")), "lora")
        for i, m in enumerate((first, second))
    ]
    inject(model, list(zip(("one", "two"), files, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), plain, strict=True))  # inactive: not computed

    for one, two in ((1.0, 0.0), (0.25, 0.5), (-0.5, 2.0), (0.0, 1.0), (0.0, 0.0)):
        set_adapters(model, {"one": one, "two": two})
        deltas = merged_weights(model, second, two)
        expected = {name: deltas[name] + w - base[name] for name, w in merged_weights(model, first, one).items()}
        assert largest_difference(model, expected) < TOLERANCE
        active = model.get_submodule("proj_out").active_adapters
        assert active == [name for name, strength in (("one", one), ("two", two)) if strength]
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), plain, strict=True))

    set_adapters(model, {"one": 1.0, "two": 0.5})
    set_adapters(model, {"two": 0.0})  # the one that is not named keeps its strength
    assert largest_difference(model, merged_weights(model, first, 1.0)) < TOLERANCE
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_delta_of_an_adapter_is_what_it_adds_whatever_its_strength_is(tmp_path: Path) -> None:
    model, found = tiny_model(), matrices(alpha=lambda _: 2.0)
    expected = {name: w - model.get_submodule(name).weight for name, w in merged_weights(model, found, 0.5).items()}
    path = write(tmp_path / "lora.safetensors", tensors(found, lambda n: f"diffusion_model.{n}"))
    inject(model, [("style", LoRAFile.open(path, "lora"))])
    for strength in (0.0, 1.0):
        set_adapters(model, {"style": strength})
        for name, delta in expected.items():
            assert (delta_weight(model.get_submodule(name), "style", 0.5) - delta).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_take_the_models_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model(dtype)
    stored = tensors(matrices(), lambda n: f"diffusion_model.{n}")
    inject(model, [("style", LoRAFile.open(write(tmp_path / "lora.safetensors", stored), "lora"))])
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype and parameter.device.type == "cpu", name
    down = model.get_submodule("proj_out").lora_A["style"].weight
    assert torch.equal(down, stored["diffusion_model.proj_out.lora_A.weight"].to(dtype))


def test_a_lora_of_some_layers_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    model = tiny_model()
    # "proj_out" is also how audio_proj_out ends, and "linear" how many others do
    found = {name: m for name, m in matrices().items() if name in ("patchify_proj", "adaln_single.linear")}
    expected = merged_weights(model, found, 1.0)
    path = write(tmp_path / "lora.safetensors", tensors(found, lambda n: f"diffusion_model.{n}"))
    inject(model, [("style", LoRAFile.open(path, "lora"))])
    set_adapters(model, {"style": 1.0})
    assert largest_difference(model, expected) < TOLERANCE
    wrapped = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == set(found)


def test_an_unknown_adapter_is_an_error() -> None:
    with pytest.raises(ValueError, match="no adapter named style"):
        set_adapters(tiny_model(), {"style": 1.0})
    set_adapters(tiny_model(), {})


def test_text_targets_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = tensors(matrices(), lambda n: f"diffusion_model.{n}")
    for key in ("text_embedding_projection.aggregate_embed", "diffusion_model.video_embeddings_connector.x.to_q"):
        stored |= {f"{key}.lora_A.weight": torch.ones(2, 4), f"{key}.lora_B.weight": torch.ones(4, 2)}
    with caplog.at_level(logging.WARNING, "ltx2.loading"):
        lora = LoRAFile.open(write(tmp_path / "lora.safetensors", stored), "lora")
    assert len(lora.skipped) == 2 and len(lora.targets) == len(LAYERS)
    assert "text_embedding_projection.aggregate_embed" in caplog.text
    assert "video_embeddings_connector" in caplog.text


A, B = "diffusion_model.proj_out.lora_A.weight", "diffusion_model.proj_out.lora_B.weight"
PAIR = {A: torch.ones(2, 24), B: torch.ones(6, 2)}
TEXT = "text_embedding_projection.aggregate_embed"
BAD: dict[str, tuple[dict[str, Tensor], dict[str, str] | None, str]] = {
    "no-lora": ({"model.diffusion_model.patchify_proj.weight": torch.ones(2, 2)}, None, "is no LoRA"),
    "half": ({A: PAIR[A]}, None, "one of the two matrices of proj_out is missing"),
    "ranks": ({A: torch.ones(3, 24), B: PAIR[B]}, None, "do not fit at proj_out"),
    "convolution": ({A: torch.ones(2, 24, 1, 1), B: PAIR[B]}, None, "changes a convolution"),
    "alpha-vector": ({**PAIR, "diffusion_model.proj_out.alpha": torch.ones(2)}, None, "no single number"),
    "diff": ({**PAIR, "diffusion_model.proj_in.diff": torch.ones(2, 2)}, None, r"full weight differences \(.diff\)"),
    "diff-b": ({**PAIR, "diffusion_model.proj_in.diff_b": torch.ones(2)}, None, "bias differences"),
    "dora": ({**PAIR, "diffusion_model.proj_out.dora_scale": torch.ones(6)}, None, "DoRA"),
    "lokr": ({"lora_unet_proj_out.lokr_w1": torch.ones(2, 2)}, None, "LoKr"),
    "ic-lora": (PAIR, {"reference_downscale_factor": "2"}, "IC-LoRA"),
    "text-only": ({f"{TEXT}.lora_A.weight": PAIR[A], f"{TEXT}.lora_B.weight": PAIR[B]}, None, "changes no layer"),
    "fp8": ({A: PAIR[A].to(torch.float8_e4m3fn), B: PAIR[B].to(torch.float8_e4m3fn)}, None, "quantised"),
    "twice": ({**PAIR, "transformer.proj_out.lora_A.weight": PAIR[A]}, None, "names the same matrix twice"),
}


@pytest.mark.parametrize(("stored", "metadata", "words"), BAD.values(), ids=BAD.keys())
def test_files_that_are_no_plain_lora_are_refused(
    tmp_path: Path, stored: dict[str, Tensor], metadata: dict[str, str] | None, words: str
) -> None:
    path = write(tmp_path / "bad.safetensors", stored, metadata)
    with pytest.raises(CheckpointError, match=words) as caught:
        LoRAFile.open(path, "lora")
    assert str(caught.value).startswith("lora = ")


def test_a_lora_for_other_layers_is_refused_with_counts(tmp_path: Path) -> None:
    found = matrices()
    found["transformer_blocks.99.attn1.to_q"] = found["transformer_blocks.0.attn1.to_q"]
    found["proj_out"] = Matrices(torch.ones(2, 99), torch.ones(6, 2))
    path = write(tmp_path / "lora.safetensors", tensors(found, lambda n: f"diffusion_model.{n}"))
    with pytest.raises(CheckpointError) as caught:
        check_fit(LoRAFile.open(path, "lora"), linear_layers(tiny_model()), "2.3")
    message = str(caught.value)
    assert "13 of its 15 targets fit the LTX-2.3 checkpoint" in message
    assert "1 are no layers of it (transformer_blocks.99.attn1.to_q)" in message
    assert "1 have another size (proj_out)" in message


def meta_transformer(config: dict[str, object]) -> nn.Module:
    with torch.device("meta"):
        return LTXTransformer(TransformerConfig.from_metadata(config))


@pytest.mark.parametrize(("own", "other"), [("2.0", "2.3"), ("2.3", "2.0")])
def test_the_generation_of_a_lora_is_told(tmp_path: Path, own: str, other: str) -> None:
    layers = linear_layers(meta_transformer(tiny_config(own)))  # type: ignore[arg-type]
    stored = {}
    for name, (out, inputs) in layers.items():
        stored[f"diffusion_model.{name}.lora_A.weight"] = torch.ones(1, inputs)
        stored[f"diffusion_model.{name}.lora_B.weight"] = torch.ones(out, 1)
    lora = LoRAFile.open(write(tmp_path / "lora.safetensors", stored), "distilled-lora")
    assert lora.generation_guess == own
    check_fit(lora, layers, own)
    with pytest.raises(CheckpointError, match=f"it looks like a LoRA for LTX-{own}.*made for LTX-{other}"):
        check_fit(lora, linear_layers(meta_transformer(tiny_config(other))), other)  # type: ignore[arg-type]


def test_an_adaln_shape_tells_the_generation(tmp_path: Path) -> None:
    for rows, generation in ((6, "2.0"), (9, "2.3"), (7, None)):
        name = "diffusion_model.adaln_single.linear"
        stored = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8 * rows, 2)}
        assert LoRAFile.open(write(tmp_path / "lora.safetensors", stored), "lora").generation_guess == generation


def test_a_lora_that_fits_and_says_that_it_is_of_another_generation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "transformer_blocks.0.attn1.to_q"
    path = tmp_path / "lora.safetensors"
    stored = {f"diffusion_model.{name}.lora_{end}.weight": torch.ones(4, 4) for end in "AB"}
    save_file(stored, path, {"model_version": "2.0.0"})
    lora = LoRAFile.open(path, "lora")
    check_fit(lora, {name: (4, 4)}, "2.0")
    assert not caplog.text
    check_fit(lora, {name: (4, 4)}, "2.3")
    assert "made for LTX-2.0, not LTX-2.3" in caplog.text


def test_every_layer_of_the_full_size_model_has_a_name_with_underscores() -> None:
    from ltx2_two_stage.ltx2_core.loading.keymaps import dotted_name

    for generation in ("2.0", "2.3"):
        layers = linear_layers(meta_transformer(full_size_config(generation)))  # type: ignore[arg-type]
        assert len(layers) == {"2.0": 1370, "2.3": 1660}[generation]
        assert all(dotted_name(name.replace(".", "_")) == name for name in layers)


def test_two_loras_on_many_layers_are_little_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft compares each layer with every other one of a call: it gets few at a time. A strength sets a number."""
    with torch.device("meta"):
        model = LTXTransformer(replace(TransformerConfig.from_metadata(full_size_config("2.3")), num_layers=8))
    layers = linear_layers(model)
    groups: list[int] = []
    work: Counter[str] = Counter()
    inject_group = peft.inject_adapter_in_model

    def counted(name: str) -> Callable[..., None]:
        method = getattr(LoraLayer, name)

        def count(*arguments: Any) -> None:
            work[name] += 1
            method(*arguments)

        return count

    def counted_group(config: peft.LoraConfig, *arguments: Any, **options: Any) -> nn.Module:
        groups.append(len(config.target_modules or ()))
        return inject_group(config, *arguments, **options)

    stored = {}
    for name, (out, inputs) in layers.items():
        rank = min(4, out, inputs)
        stored[f"diffusion_model.{name}.lora_A.weight"] = torch.zeros(rank, inputs, dtype=torch.bfloat16)
        stored[f"diffusion_model.{name}.lora_B.weight"] = torch.zeros(out, rank, dtype=torch.bfloat16)
    lora = LoRAFile.open(write(tmp_path / "lora.safetensors", stored), "distilled-lora")
    check_fit(lora, layers, "2.3")
    monkeypatch.setattr(peft, "inject_adapter_in_model", counted_group)
    inject(model, [("distilled", lora), ("user", lora)])
    assert sum(groups) == 2 * len(layers) > 5 * 64 and max(groups) <= 64
    for name in ("set_scale", "set_adapter"):
        monkeypatch.setattr(LoraLayer, name, counted(name))
    set_adapters(model, {"distilled": 1.0, "user": 0.5})
    set_adapters(model, {"user": 0.25})
    assert work == {"set_scale": 3 * len(layers), "set_adapter": len(layers)}
