"""What a LoRA file says outside its matrices: alpha and rank in every trainer's spelling, and what is no plain LoRA."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError
from ltx2_two_stage.ltx2_core.loading.inspect import inspect_file
from ltx2_two_stage.ltx2_core.loading.lora import LoRAFile, inject, set_adapters
from ltx2_two_stage.ltx2_core.loading.lora_statements import LayerPatterns, LoRAStatements, StatementProblem
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 4
TO_Q, TO_K = "transformer_blocks.0.attn1.to_q", "transformer_blocks.11.attn1.to_k"
Metadata = Mapping[str, str]


def lora(folder: Path, metadata: Metadata, alphas: Mapping[str, float] | None = None, prefix: str = "") -> Path:
    """Rank 4 on two layers of 6 numbers."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name in (TO_Q, TO_K):
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(RANK, 6, generator=generator)
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(6, RANK, generator=generator)
    tensors |= {f"{prefix}{name}.alpha": torch.tensor(alpha) for name, alpha in (alphas or {}).items()}
    save_file(tensors, folder / "style.safetensors", dict(metadata))
    return folder / "style.safetensors"


def scales(path: Path) -> tuple[float, float]:
    """alpha / rank of both layers, as they are merged."""
    read = LoRAFile.open(path, "lora").read("cpu", torch.float32)
    return read[TO_Q].alpha / RANK, read[TO_K].alpha / RANK


def adapter(**fields: Any) -> Metadata:
    return {"lora_adapter_metadata": json.dumps(fields)}


# Metadata -> alpha / rank of to_q and of to_k
STATED: dict[str, tuple[Metadata, tuple[float, float]]] = {
    "nothing": ({}, (1, 1)),
    "diffusers": (adapter(**{"transformer.r": 4, "transformer.lora_alpha": 8}), (2, 2)),
    "diffusers-nested": (adapter(transformer={"r": 4, "lora_alpha": 2}), (0.5, 0.5)),
    "peft": (adapter(r=4, lora_alpha=1, use_rslora=False, use_dora=False, target_modules=["to_q"]), (0.25, 0.25)),
    "alpha-alone": (adapter(lora_alpha=2), (0.5, 0.5)),
    "rank-alone": (adapter(r=4), (1, 1)),
    "numbers-as-text": (adapter(**{"transformer.r": "4", "transformer.lora_alpha": "8.0"}), (2, 2)),
    "other-components": (
        adapter(**{"connectors.lora_alpha": 99, "text_encoder.lora_alpha": 7, "transformer.lora_alpha": 8}),
        (2, 2),
    ),
    "connectors-alone": (adapter(**{"connectors.lora_alpha": 99, "connectors.r": 4}), (1, 1)),
    "adapter-config": ({"adapter_config": json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8})}, (2, 2)),
    "adapter-config.json": ({"adapter_config.json": json.dumps({"r": 4, "lora_alpha": 8})}, (2, 2)),
    "peft-config-by-adapter": ({"peft_config": json.dumps({"default": {"r": 4, "lora_alpha": 8}})}, (2, 2)),
    "peft-config-by-name": ({"peft_config": json.dumps({"my_style": {"r": 4, "lora_alpha": 8}})}, (2, 2)),
    "lora-config": ({"lora_config": json.dumps({"rank": 4, "alpha": 8})}, (2, 2)),
    "config": ({"config": json.dumps({"peft_type": "LORA", "lora_alpha": 8})}, (2, 2)),
    "kohya": ({"ss_network_dim": "4", "ss_network_alpha": "2.0"}, (0.5, 0.5)),
    "kohya-none": ({"ss_network_dim": "4", "ss_network_alpha": "None", "ss_network_args": "None"}, (1, 1)),
    "kohya-zero-is-the-rank": ({"ss_network_alpha": "0"}, (1, 1)),
    "kohya-arguments": ({"ss_network_args": json.dumps({"alpha": "8", "conv_alpha": "1"})}, (2, 2)),
    "kohya-list-of-arguments": ({"ss_network_args": json.dumps(["alpha=8", "loraplus_lr_ratio=4"])}, (2, 2)),
    "pattern-with-the-models-prefix": (
        adapter(alpha_pattern={f"diffusion_model.{TO_Q}": 8, f"transformer.{TO_K}": 2}),
        (2, 0.5),
    ),
    "onetrainer": ({"ot_config": json.dumps({"lora_rank": 4, "lora_alpha": 8, "optimizer": {"alpha": 0.9}})}, (2, 2)),
    "plain-entries": ({"rank": "4", "lora_alpha": "8"}, (2, 2)),
    "plain-r": ({"r": "4", "alpha": "2"}, (0.5, 0.5)),
    "plain-with-a-component": ({"transformer.r": "4", "transformer.lora_alpha": "8"}, (2, 2)),
    "upper-case": ({"Network_Alpha": "8"}, (2, 2)),
    "rslora": (adapter(r=4, lora_alpha=8, use_rslora=True), (4, 4)),
    "rslora-in-arguments": (
        {"ss_network_alpha": "2", "ss_network_args": json.dumps({"rs_lora": "True"})},
        (1, 1),
    ),
    "pattern-of-one-layer": (adapter(lora_alpha=4, alpha_pattern={"to_q": 8}), (2, 1)),
    "pattern-anchored": (adapter(lora_alpha=4, alpha_pattern={f"^{TO_K}": 8, "^attn1.to_q": 16}), (1, 2)),
    "pattern-anchored-with-prefix": (adapter(alpha_pattern={"^diffusion_model.attn1.to_q": 16}), (1, 1)),
    "pattern-first-wins": (adapter(alpha_pattern={"attn1.to_q": 8, "to_q": 16, "to_k": 2}), (2, 0.5)),
    "pattern-at-the-end-alone": (adapter(lora_alpha=4, alpha_pattern={"attn1": 8, "o_q": 8}), (1, 1)),
    "pattern-regex": (adapter(alpha_pattern={r"transformer_blocks\.\d+\.attn1\.to_(q|v)": 8, ".*to_k": 2}), (2, 0.5)),
    "pattern-dollar": (adapter(alpha_pattern={r"attn1\.to_q$": 8}), (2, 1)),
    "pattern-with-a-component": (adapter(**{"transformer.alpha_pattern": {"to_q": 8}}), (2, 1)),
    "rank-pattern": (adapter(r=8, lora_alpha=8, rank_pattern={"to_q": 4, "to_k": 4}), (2, 2)),
    "empty-patterns": (adapter(lora_alpha=8, rank_pattern={}, alpha_pattern={}), (2, 2)),
    "same-twice": (adapter(lora_alpha=8) | {"ss_network_alpha": "8"}, (2, 2)),
}


@pytest.mark.parametrize(("metadata", "expected"), STATED.values(), ids=STATED.keys())
def test_alpha_is_found_where_trainers_write_it(
    tmp_path: Path, metadata: Metadata, expected: tuple[float, float]
) -> None:
    path = lora(tmp_path, metadata, prefix="diffusion_model.")
    assert scales(path) == pytest.approx(expected)
    assert not LoRAFile.open(path, "lora").notices
    kept = lora(tmp_path, metadata, {TO_Q: 6.0, TO_K: 1.0}, "diffusion_model.")
    assert scales(kept) == (1.5, 0.25)  # tensors win


def test_patterns_may_use_the_names_of_diffusers(tmp_path: Path) -> None:
    name = "adaln_single.linear"
    for prefix, written in (("diffusion_model.", name), ("transformer.", "time_embed.linear")):
        keys = (f"{prefix}{written}.lora_A.weight", f"{prefix}{written}.lora_B.weight")
        for pattern in ("^time_embed.linear", "^adaln_single.linear", "time_embed.linear"):
            save_file(
                {keys[0]: torch.ones(2, 3), keys[1]: torch.ones(9, 2)},
                tmp_path / "lora.safetensors",
                dict(adapter(alpha_pattern={pattern: 6})),
            )
            target = LoRAFile.open(tmp_path / "lora.safetensors", "lora").targets[name]
            assert (target.stated, target.alpha) == (6.0, None)


def test_a_stated_alpha_changes_what_the_model_computes(tmp_path: Path) -> None:
    """The same numbers as with the factor in a matrix, on the fly."""
    results = []
    for metadata, factor in ((adapter(r=4, lora_alpha=8, use_rslora=True), 4.0), ({}, 1.0)):
        torch.manual_seed(1)
        model = nn.Module()
        model.add_module("proj_out", nn.Linear(6, 5).requires_grad_(False))
        generator = torch.Generator().manual_seed(0)
        down, up = torch.randn(4, 6, generator=generator), torch.randn(5, 4, generator=generator)
        tensors = {"proj_out.lora_A.weight": down, "proj_out.lora_B.weight": up * (4.0 / factor)}
        save_file(tensors, tmp_path / "lora.safetensors", dict(metadata))
        inject(model, [("style", LoRAFile.open(tmp_path / "lora.safetensors", "lora"))])
        set_adapters(model, {"style": 0.5})
        results.append(model.get_submodule("proj_out")(torch.ones(2, 6)))
    assert torch.allclose(*results, atol=1e-5)


BROKEN: dict[str, tuple[Metadata, str]] = {
    "not-json": ({"lora_adapter_metadata": "{'r': 4}"}, "lora_adapter_metadata is not a JSON object"),
    "a-list-of-brackets": ({"lora_adapter_metadata": "[" * 5000}, "lora_adapter_metadata is not a JSON object"),
    "a-number": ({"lora_adapter_metadata": "8"}, "lora_adapter_metadata is not a JSON object"),
    "nan": ({"lora_adapter_metadata": '{"lora_alpha": NaN}'}, "lora_alpha is nan, not a positive number"),
    "infinity": ({"lora_adapter_metadata": '{"lora_alpha": Infinity}'}, "lora_alpha is inf"),
    "negative": (adapter(lora_alpha=-8), "lora_alpha is -8, not a positive number"),
    "zero": (adapter(lora_alpha=0), "lora_alpha is 0"),
    "bool": (adapter(lora_alpha=True), "lora_alpha is True"),
    "text": (adapter(lora_alpha="much"), "lora_alpha is much"),
    "list": (adapter(lora_alpha=[8]), "lora_alpha is list"),
    "huge": (adapter(lora_alpha=1e30), "lora_alpha is 1e"),
    "huge-integer": ({"lora_adapter_metadata": '{"lora_alpha": 1' + "0" * 400 + "}"}, "lora_alpha is 1000"),
    "digits-without-end": ({"ss_network_alpha": "9" * 100_000}, "ss_network_alpha is 999"),
    "zero-rank": (adapter(r=0, lora_alpha=8), "r is 0, not a whole number"),
    "half-a-rank": (adapter(r=4.5, lora_alpha=8), r"r is 4\.5, not a whole number"),
    "negative-rank": ({"ss_network_dim": "-4"}, "ss_network_dim is -4"),
    "kohya-nan": ({"ss_network_alpha": "nan"}, "ss_network_alpha is nan"),
    "kohya-arguments": ({"ss_network_args": "alpha=8"}, "ss_network_args is not a JSON object"),
    "two-alphas": (adapter(lora_alpha=8) | {"ss_network_alpha": "4"}, "states two alphas: 8 .* and 4"),
    "pattern-no-object": (adapter(alpha_pattern=[8]), "alpha_pattern is no object"),
    "pattern-number": (adapter(alpha_pattern={"to_q": -1}), "alpha_pattern of to_q is -1"),
    "pattern-without-end": (adapter(alpha_pattern={"(a+)+$": 8}), "pattern for layers .* not supported"),
    "pattern-broken": (adapter(alpha_pattern={"(to_q": 8}), "pattern for layers .* not supported"),
    "rslora-without-alpha": (adapter(r=4, use_rslora=True), "rsLoRA that states no alpha"),
    "rslora-perhaps": (adapter(lora_alpha=4, use_rslora="perhaps"), "use_rslora is perhaps, not true or false"),
    "unknown-components": (adapter(**{"one.lora_alpha": 8, "two.lora_alpha": 4}), "components of unknown names"),
}


@pytest.mark.parametrize(("metadata", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_metadata_that_cannot_be_used_is_refused_or_said(tmp_path: Path, metadata: Metadata, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        LoRAFile.open(lora(tmp_path, metadata), "lora")
    assert str(caught.value).startswith("lora = ") and len(str(caught.value)) < 1500
    if "states no alpha" not in words:
        # Every layer has its own: said, not refused
        found = LoRAFile.open(lora(tmp_path, metadata, {TO_Q: 4.0, TO_K: 2.0}), "lora")
        assert len(found.notices) == 1 and "metadata is not used" in found.notices[0]


def test_the_matrices_rank_counts_and_another_stated_one_is_said(tmp_path: Path) -> None:
    path = lora(tmp_path, adapter(r=16, lora_alpha=8))
    found = LoRAFile.open(path, "lora")
    assert scales(path) == (2, 2)
    assert len(found.notices) == 1
    assert "another rank than the matrices of 2 layers" in found.notices[0] and "stated 16, is 4" in found.notices[0]
    assert not LoRAFile.open(lora(tmp_path, adapter(r=16)), "lora").notices  # alpha is the rank, whatever that is


def test_a_converted_file_of_kohyas_family_has_alpha_in_its_matrices(tmp_path: Path) -> None:
    """musubi's converter for LTX-2 multiplies the matrices, drops .alpha and keeps the metadata."""
    metadata = {"ss_network_module": "networks.lora_ltx2", "ss_network_alpha": "8", "ss_network_dim": "4"}
    path = lora(tmp_path, metadata, prefix="diffusion_model.")
    assert scales(path) == (1, 1)
    assert "ss_network_alpha is not used" in LoRAFile.open(path, "lora").notices[0]
    assert scales(lora(tmp_path, metadata, {TO_Q: 8.0, TO_K: 8.0})) == (2, 2)
    tensors = {
        f"lora_unet_{name.replace('.', '_')}.lora_{end}.weight": torch.ones(shape)
        for name in (TO_Q, TO_K)
        for end, shape in (("down", (RANK, 6)), ("up", (6, RANK)))
    }
    save_file(tensors, path, metadata)  # the trainer's own layout, which lost its scalars
    assert scales(path) == (2, 2)


def test_rslora_beside_tensors_is_said(tmp_path: Path) -> None:
    path = lora(tmp_path, adapter(lora_alpha=8, use_rslora=True), {TO_Q: 2.0})
    assert scales(path) == pytest.approx((0.5, 8 / math.sqrt(RANK)))
    assert any("rsLoRA" in notice for notice in LoRAFile.open(path, "lora").notices)


REFERENCE: dict[str, Metadata] = {
    "official": {"reference_downscale_factor": "2"},
    "official-one": {"reference_downscale_factor": "1"},
    "musubi": {"ss_reference_downscale_factor": "2"},
    "any-prefix": {"my.trainer_reference_downscale_factor": "4"},
    "upper-case": {"Reference_Downscale_Factor": "2"},
    "spatial": {"reference_spatial_scale_factor": "2"},
    "in-arguments": {"ss_network_args": json.dumps({"reference_downscale_factor": "2"})},
    "in-a-list-of-arguments": {"ss_network_args": json.dumps(["dim=4", "reference_downscale_factor=2"])},
    "in-peft": adapter(**{"transformer.reference_downscale_factor": 2}),
    "deep": {"training": json.dumps({"conditioning": {"reference_downscale_factor": 2}})},
    "in-the-model-config": {"config": json.dumps({"lora": {"reference_downscale_factor": 2}})},
    "strategy": {"ss_ic_lora_strategy": "v2v"},
    "official-strategy": {"training_strategy": json.dumps({"name": "video_to_video"})},
    "plain-strategy": {"lora_type": "IC-LoRA"},
    "v2v": {"ss_v2v_training": "True"},
    "mark": {"is_ic_lora": "true"},
}


@pytest.mark.parametrize("metadata", REFERENCE.values(), ids=REFERENCE.keys())
def test_an_ic_lora_is_refused_by_name_whoever_marked_it(tmp_path: Path, metadata: Metadata) -> None:
    path = lora(tmp_path, metadata)
    with pytest.raises(CheckpointError, match="is an IC-LoRA"):
        LoRAFile.open(path, "lora")
    assert "IC-LoRA" in (inspect_file(path).problem or "")


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_ic_lora_strategy": "none", "ss_v2v_training": "False"},
        {"ss_reference_downscale_factor": "None"},
        {"training_strategy": json.dumps({"name": "text_to_video"})},
        {"ss_training_comment": "not an ic_lora, reference_downscale_factor unused"},
        {"ss_i2v_training": "True", "description": '{"about": "ic_lora"}'},
    ],
)
def test_what_only_speaks_of_ic_loras_is_none(tmp_path: Path, metadata: Metadata) -> None:
    assert not LoRAFile.open(lora(tmp_path, metadata), "lora").notices


def test_a_name_that_says_ic_lora_is_said(tmp_path: Path) -> None:
    path = lora(tmp_path, {})
    for name, said in (
        ("ltx-2-19b-ic-lora-canny", True),
        ("IC_LoRA", True),
        ("basic-lora", False),
        ("magic lora", False),
    ):
        moved = path.rename(tmp_path / f"{name}.safetensors")
        assert any("IC-LoRA" in notice for notice in LoRAFile.open(moved, "lora").notices) is said
        path = moved


@pytest.mark.parametrize(
    "metadata",
    [adapter(use_dora=True, lora_alpha=4), {"ss_network_args": '{"use_dora": "True"}'}, {"weight_decompose": "true"}],
    ids=["peft", "kohya", "plain"],
)
def test_a_dora_is_refused_by_name(tmp_path: Path, metadata: Metadata) -> None:
    with pytest.raises(CheckpointError, match="says in its metadata that it is a DoRA"):
        LoRAFile.open(lora(tmp_path, metadata), "lora")


def test_inspect_shows_what_was_found(tmp_path: Path) -> None:
    metadata = dict(adapter(r=4, lora_alpha=8, use_rslora=True)) | {"software": json.dumps({"name": "ai-toolkit"})}
    details = inspect_file(lora(tmp_path, metadata)).details
    assert (details["alpha"], details["alpha from"], details["stated alpha"]) == (True, "lora_adapter_metadata", [16.0])
    assert (details["rsLoRA"], details["trainer"]) == (True, "ai-toolkit")
    text = inspect_file(lora(tmp_path, metadata, {TO_Q: 4.0})).to_text()
    assert "tensors and lora_adapter_metadata" in text and "ai-toolkit" in text
    assert LoRAStatements.read({"ot_revision": "1"}).trainer == "OneTrainer"
    assert LoRAStatements.read({"ss_network_module": "networks.lora_ltx2"}).trainer == "networks.lora_ltx2"


def test_patterns_for_every_layer_are_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,660 names as diffusers writes them are looked up; of expressions a few are run, the worst in bounded steps."""
    names = [f"transformer_blocks.{n}.audio_to_video_attn.to_gate_logits" for n in range(1660)]
    compiled: list[str] = []
    compile_one = re.compile
    monkeypatch.setattr(re, "compile", lambda *given: compiled.append(given[0]) or compile_one(*given))
    table = LayerPatterns({f"^{name}": float(index + 1) for index, name in enumerate(names)})
    assert [table.find((name,)) for name in names] == [float(index + 1) for index in range(1660)]
    assert not compiled
    worst = LayerPatterns({rf"t.*_\d+\d+\d+x{n}": 1.0 for n in range(16)})
    assert len(compiled) == 16
    assert not any(worst.find((name,)) for name in names[:200])
    with pytest.raises(StatementProblem, match="17 regular expressions"):
        LayerPatterns({rf"x{n}\d": 1.0 for n in range(17)})
