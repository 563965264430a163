"""LTX-2 Model against ComfyUI's own LTX-AV model with the same tiny weights, in the host's Python.

In one place the host's model departs from the official code, and is brought back for the comparison.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

COMPARE = """
import inspect, json, shutil, textwrap
from pathlib import Path
folder, = arguments
import torch
import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.supported_models
from comfy.ldm.lightricks import av_model
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from safetensors import safe_open
from safetensors.torch import load_file

from pack.device_manager.layout import unique_tensors
from pack.device_manager.modes import Mode
from pack.ltx2_core.errors import LTX2Error
from pack.ltx2_core.loading.model_set import ModelFiles
from pack.ltx2_core.loading.synthetic import write_tiny
from pack.ltx2_core.types import Component, Phase
from pack.nodes.handle import PIPELINES
from pack.nodes.model import Model

CPU = torch.device("cpu")

def problem(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except LTX2Error as error:
        return str(error)
    return None

def in_the_official_order():
    # Both directions of the exchange read the streams as they were before. The host's block (0.33) works in place: its
    # sound attends to a picture that has the first update already.
    source = textwrap.dedent(inspect.getsource(av_model.BasicAVTransformerBlock.forward))
    head, direction, tail = source.partition("# video to audio cross attention")
    read = "rms_adaln({}, scale_ca_video_hidden_states_v2a"
    if "vx.addcmul_(a2v_out" not in head or read.format("vx") not in tail:
        return
    head = head.replace("ax_norm3 = ", "vx_before = vx.clone(); ax_norm3 = ", 1)
    tail = tail.replace(read.format("vx"), read.format("vx_before"))
    scope = dict(vars(av_model))
    exec(head + direction + tail, scope)
    av_model.BasicAVTransformerBlock.forward = scope["forward"]

def host_patcher(config, checkpoint, geometry):
    settings = {**config, "image_model": "ltxav", "dtype": torch.float32}
    model = comfy.model_base.LTXAV(comfy.supported_models.LTXAV(settings))
    prefix = "model.diffusion_model."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    model.diffusion_model.load_state_dict(weights)
    # The only sizes of the released model that the host has built in
    model.diffusion_model.num_audio_channels = geometry.channels
    model.diffusion_model.audio_frequency_bins = geometry.mel_bins
    return ModelPatcher(model, CPU, CPU)

def apply(patcher, latents, context, sigma, conds=None, **options):
    # As the host's guider does: a video latent alone is not packed
    packed, shapes = comfy.utils.pack_latents(latents) if len(latents) > 1 else (latents[0], [latents[0].shape])
    return patcher.model.apply_model(
        packed, torch.full((latents[0].shape[0],), sigma), c_crossattn=context, frame_rate=24.0, latent_shapes=shapes,
        transformer_options=options, **(conds or {}))

def sample(patcher, latents, positive, negative, cfg=3.0, mask=None, steps=3):
    latent = NestedTensor(latents)
    noise = comfy.sample.prepare_noise(latent, 7)
    sigmas = torch.tensor([0.909375, 0.725, 0.421875, 0.0])[-steps - 1:]
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    done = guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, denoise_mask=mask)
    return torch.cat([part.flatten() for part in done.unbind()])

def distance(one, other):
    return {"difference": (one - other).abs().max().item(), "std": other.std().item()}

facts = {}
in_the_official_order()
for variant in ("2.3", "2.0"):
    files = write_tiny(Path(folder) / variant, variant)
    checkpoint = {name: value.float() for name, value in load_file(files.checkpoint).items()}
    with safe_open(files.checkpoint, "pt") as file:
        config = json.loads(file.metadata()["config"])["transformer"]
    handle = PIPELINES.open(
        ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora), torch.float32, CPU, "auto")
    models, manager = handle.pipeline.models, handle.pipeline.residency
    geometry = models.audio_geometry
    torch.manual_seed(0)
    video = torch.randn(1, models.latent_channels, 2, 2, 3)
    audio = torch.randn(1, geometry.channels, 9, geometry.mel_bins)
    width = sum(handle.context_widths)
    text, other_text = torch.randn(1, 128, width), torch.randn(1, 128, width)
    own = Model.execute(handle, "stage 1", "two-stage").args[0]
    theirs = host_patcher(config, checkpoint, geometry)
    results = facts[variant] = {}
    with torch.inference_mode():
        def compare(name, latents, context, sigma, conds=None, **options):
            found = [apply(p, latents, context, sigma, conds, **options) for p in (own, theirs)]
            results[name] = distance(*found)
            return found[0]

        plain = compare("plain", [video, audio], text, 0.7)
        compare("batch of two", [video.repeat(2, 1, 1, 1, 1), audio.repeat(2, 1, 1, 1)],
                torch.cat([text, other_text]), 0.7)
        compare("video alone", [video], text, 0.7)
        mask = torch.ones(1, 1, 2, 2, 3)
        mask[:, :, 0] = 0.25
        frozen = {"denoise_mask": mask, "audio_denoise_mask": torch.zeros(1, 1, 9, 1)}
        compare("masked", [video, audio], text, 0.7, {**frozen, "audio_denoise_mask": torch.ones(1, 1, 9, 1)})
        compare("sound is given", [video, audio], text, 0.7, frozen)
        holes = mask.clone()
        holes[:, :, 1, 0] = 0.5
        compare("spatial mask", [video, audio], text, 0.7, {"denoise_mask": holes})
        stg = compare("STG", [video, audio], text, 0.7, stg_self_attn_blocks=frozenset({1}))
        apart = compare("no exchange", [video, audio], text, 0.7, a2v_cross_attn=False, v2a_cross_attn=False)
        results["guidance differs"] = [not torch.allclose(plain, out, atol=1e-3) for out in (stg, apart)]

        positive, negative = [[text, {"frame_rate": 24.0}]], [[other_text, {"frame_rate": 24.0}]]
        first = sample(own, [video, audio], positive, negative)
        results["sampled"] = distance(first, sample(theirs, [video, audio], positive, negative))
        holding = NestedTensor((mask, torch.ones_like(audio)))
        masked = [sample(p, [video, audio], positive, negative, mask=holding) for p in (own, theirs)]
        results["sampled with a mask"] = distance(*masked)
        raw = torch.randn(1, 20, handle.context_widths[0] if variant == "2.0" else width)
        unprocessed = [[raw, {"unprocessed_ltxav_embeds": True, "frame_rate": 24.0}]]
        connected = [sample(p, [video, audio], unprocessed, unprocessed, cfg=1.0) for p in (own, theirs)]
        results["sampled with the host's text"] = distance(*connected)

        # Stage 2: other weights for the sampling, the base ones before and after, in every mode
        results["modes"] = {}
        reference = None
        for mode in Mode:
            manager.change_mode(mode, "for a test")
            second = Model.execute(handle, "stage 2", "two-stage").args[0]
            merged = sample(second, [video, audio], positive, negative, cfg=1.0)
            base = sample(own, [video, audio], positive, negative)
            reference = merged if reference is None else reference
            results["modes"][mode.value] = {
                "stage 2": distance(merged, reference),
                "stage 1 is as before": torch.equal(base, first),
                "differs from stage 1": not torch.allclose(merged, base, atol=1e-3),
            }
        manager.change_mode(Mode.RESIDENT, "for a test")

        if variant == "2.3":
            facts["parameters"] = sum(1 for _ in own.model.diffusion_model.parameters())
            facts["held"] = {}

            def interrupted(*args, **kwargs):
                facts["held"]["inside"] = manager.release_if_idle()
                comfy.model_management.unload_all_models()
                raise KeyboardInterrupt

            guarded = own.clone()
            guarded.set_model_sampler_post_cfg_function(interrupted)
            try:
                sample(guarded, [video, audio], positive, negative)
            except KeyboardInterrupt:
                facts["held"]["interrupted"] = True
            facts["held"]["after"] = manager.release_if_idle() > 0
            facts["held"]["again"] = torch.equal(sample(own, [video, audio], positive, negative), first)
            manager.take_records()
            sample(own, [video, audio], positive, negative)
            facts["stages"] = [record["name"] for record in manager.last_records()]

            both = second.clone()
            both.set_model_sampler_post_cfg_function(
                lambda args: sample(own, [video, audio], positive, negative) and args["denoised"])
            facts["two at once"] = problem(sample, both, [video, audio], positive, negative)
            facts["refused"] = {
                "lora": problem(own.clone().add_patches, {}, 1.0),
                "merge": problem(own.get_key_patches, "diffusion_model."),
                "control": problem(apply, own, [video, audio], text, 0.7, {"control": {"output": [video]}}),
                "guides": problem(apply, own, [video, audio], text, 0.7, {"keyframe_idxs": torch.ones(1, 3, 4, 2)}),
                "blocks": problem(apply, own, [video, audio], text, 0.7,
                                  patches_replace={"dit": {("double_block", 0): print}}),
                "guider": problem(own.get_model_object, "diffusion_model.transformer_blocks"),
                "one way": problem(apply, own, [video, audio], text, 0.7, a2v_cross_attn=False),
                "text of another model": problem(sample, own, [video, audio], [[text[..., 1:], {}]], negative),
            }
            facts["allowed"] = problem(apply, own, [video, audio], text, 0.7, {"keyframe_idxs": torch.ones(1, 3, 0, 2)},
                                       patches={}, patches_replace={"dit": {}})
            calls = []
            own.add_wrapper_with_key("diffusion_model", "test", lambda ex, *a, **k: calls.append(1) or ex(*a, **k))
            wrapped = sample(own, [video, audio], positive, negative, cfg=1.0)
            facts["wrappers"] = len(calls)
            without = PIPELINES.open(
                ModelFiles(files.checkpoint, files.gemma, files.upsampler), torch.float32, CPU, "auto")
            facts["no LoRA"] = problem(Model.execute, without, "stage 2", "two-stage")
            facts["distilled recipe on dev"] = problem(Model.execute, without, "stage 2", "distilled")
            distilled = shutil.copy(files.checkpoint, files.folder / "ltx-2.3-22b-distilled.safetensors")
            without = PIPELINES.open(
                ModelFiles(distilled, files.gemma, files.upsampler), torch.float32, CPU, "auto")
            facts["no LoRA needed"] = problem(Model.execute, without, "stage 2", "distilled")
print("FACTS" + json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    return dict(comfyui.facts(COMPARE, folder, working=folder))


@pytest.mark.parametrize("variant", ["2.3", "2.0"])
@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "batch of two",
        "video alone",
        "masked",
        "sound is given",
        "spatial mask",
        "STG",
        "no exchange",
        "sampled",
        "sampled with a mask",
        "sampled with the host's text",
    ],
)
def test_it_computes_what_the_hosts_own_model_computes(facts: dict[str, Any], variant: str, case: str) -> None:
    found = facts[variant][case]
    assert found["std"] > 0.1
    # float32 on both sides, in other orders; the host takes its rotary frequencies in float64 as well
    assert found["difference"] < 2e-4


@pytest.mark.parametrize("variant", ["2.3", "2.0"])
def test_guidance_nodes_change_something(facts: dict[str, Any], variant: str) -> None:
    assert facts[variant]["guidance differs"] == [True, True]


@pytest.mark.parametrize("variant", ["2.3", "2.0"])
@pytest.mark.parametrize("mode", ["resident", "snapshot", "snapshot-low", "original"])
def test_both_stages_share_one_set_of_base_weights(facts: dict[str, Any], variant: str, mode: str) -> None:
    found = facts[variant]["modes"][mode]
    assert found["stage 1 is as before"], "the base weights were changed"
    assert found["differs from stage 1"]
    # Merged weights are the same bits in every mode; "original" adds the LoRA on the fly
    assert found["stage 2"]["difference"] <= (1e-3 if mode == "original" else 0)


def test_the_host_finds_no_weights_and_cannot_take_ours_while_it_samples(facts: dict[str, Any]) -> None:
    assert facts["parameters"] == 0
    assert facts["held"] == {"inside": 0, "interrupted": True, "after": True, "again": True}
    assert facts["stages"] == ["stage_1 sampler"]


def test_two_stages_cannot_sample_inside_each_other(facts: dict[str, Any]) -> None:
    assert "its transformer is at work for another MODEL" in facts["two at once"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora", "Use LTX-2 LoRA before LTX-2 Model"),
        ("merge", "it cannot be merged or saved"),
        ("control", "does not support a ControlNet"),
        ("guides", "does not support guide frames"),
        ("blocks", "does not support replaced blocks"),
        ("guider", "does not support replaced blocks"),
        ("one way", "in one direction only"),
        ("text of another model", "is not made for these models"),
    ],
)
def test_what_it_would_ignore_is_refused(facts: dict[str, Any], name: str, message: str) -> None:
    assert message in facts["refused"][name]


def test_what_changes_nothing_is_not_refused(facts: dict[str, Any]) -> None:
    assert facts["allowed"] is None
    assert facts["wrappers"] == 3, "the host's wrappers around the network run"


def test_a_missing_distilled_lora_is_named(facts: dict[str, Any]) -> None:
    assert "distilled-lora = None: stage 2 of the two-stage preset needs one" in facts["no LoRA"]
    assert facts["no LoRA needed"] is None
    assert "is a dev checkpoint: nothing but grain comes of it" in facts["distilled recipe on dev"]
