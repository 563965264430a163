"""The pack inside a real ComfyUI, on tiny files: nodes, errors, interrupts, memory between runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from host_graphs import RECIPE, TEXTS, Prompt, loader, node, save_latent
from PIL import Image
from safetensors import safe_open
from torch import Tensor

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

# The smallest clip that still has two latent frames
WIDTH, HEIGHT, FRAMES, FPS, STEPS = 128, 64, 9, 24.0, 2
LOADER = loader()
CLIP = {
    "preset": "two-stage",
    "width": WIDTH,
    "height": HEIGHT,
    "frames": FRAMES,
    "fps": FPS,
    "seed": 7,
    "steps": STEPS,
}


def separate(loader: dict[str, Any] = LOADER, images: bool = False, **changes: Any) -> Prompt:
    prompt = {
        "loader": loader,
        "text": node("LTX2TwoStageTextEncode", pipeline=["loader", 0], **TEXTS),
        "stage1": node(
            "LTX2TwoStageDenoise",
            pipeline=["loader", 0],
            positive=["text", 0],
            negative=["text", 1],
            **{**CLIP, **changes},
        ),
        "up": node("LTX2TwoStageUpsample", pipeline=["stage1", 0], latent=["stage1", 1]),
        "switch": node("LTX2TwoStageLoRASwitch", pipeline=["stage1", 0], stage="stage 2", strength=1.0),
        "stage2": node(
            "LTX2TwoStageRefine",
            pipeline=["switch", 0],
            positive=["text", 0],
            latent=["up", 0],
            audio_source="preset",
        ),
        "decode": node("LTX2TwoStageDecode", pipeline=["stage2", 0], latent=["stage2", 1], fps=0.0),
        "save": node("SaveVideo", video=["decode", 2], filename_prefix="separate", format="auto", codec="auto"),
        **save_latent(["stage2", 1], "separate"),
    }
    if images:
        prompt |= conditioned(prompt["stage1"])
    return prompt


def generate(loader: dict[str, Any] = LOADER, images: bool = False, **changes: Any) -> Prompt:
    prompt = {
        "loader": loader,
        "all": node("LTX2TwoStageGenerate", pipeline=["loader", 0], **{**TEXTS, **CLIP, **changes}),
        "save": node("SaveVideo", video=["all", 0], filename_prefix="generate", format="auto", codec="auto"),
        **save_latent(["all", 3], "generate"),
    }
    if images:
        prompt |= conditioned(prompt["all"])
    return prompt


def conditioned(target: dict[str, Any]) -> Prompt:
    """Two chained images: the first frame, and a keyframe at the end that is only partly kept."""
    target["inputs"]["images"] = ["last", 0]
    return {
        "picture": node("LoadImage", image="example.png"),
        "first": node("LTX2TwoStageImageCondition", image=["picture", 0], frame=0, strength=1.0),
        "last": node(
            "LTX2TwoStageImageCondition", image=["picture", 0], frame=FRAMES - 1, strength=0.6, images=["first", 0]
        ),
    }


def latents(outputs: dict[str, list[Path]], prefix: str) -> tuple[Tensor, Tensor]:
    def read(path: Path) -> Tensor:
        with safe_open(path, "pt") as file:
            return file.get_tensor("latent_tensor")

    return read(outputs[f"{prefix}video"][0]), read(outputs[f"{prefix}audio"][0])


def check_clip(path: Path, width: int, height: int, frames: int, fps: float) -> None:
    """Picture of the right size and length, not flat, and sound as long, not silent."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height) == (width, height)
        assert float(video.average_rate) == pytest.approx(fps)
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        assert len(pictures) == frames
        assert pictures[0].std() > 2
        container.seek(0)
        sound = [frame.to_ndarray() for frame in container.decode(audio)]
        samples = sum(part.shape[-1] for part in sound)
        # AAC rounds up to its frames of 1024 samples and adds one of priming
        assert abs(samples / audio.rate - frames / fps) < 0.05 + 2 * 1024 / audio.rate
        assert max(float(abs(part).max()) for part in sound) > 1e-3


def our_nodes(host: Any) -> dict[str, Any]:
    return {name: node for name, node in host.get("/object_info").items() if name.startswith("LTX2TwoStage")}


def test_the_pack_loads_without_a_complaint(host: Any) -> None:
    # Later tests make errors on purpose
    assert "IMPORT FAILED" not in host.start_log and "is left out" not in host.start_log
    assert "Traceback" not in host.start_log
    nodes = our_nodes(host)
    assert {"LTX2TwoStageLoader", "LTX2TwoStageGenerate", "LTX2TwoStageReport"} <= nodes.keys()
    for name, info in nodes.items():
        assert info["category"] == "LTX-2 Two-Stage"
        assert info["description"]
        declared = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert all(spec[1].get("tooltip") for spec in declared.values()), name
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name


def test_the_loader_lists_files_and_folders(host: Any) -> None:
    inputs = our_nodes(host)["LTX2TwoStageLoader"]["input"]["required"]
    assert "ltx-2.3-22b-dev.safetensors" in inputs["checkpoint"][1]["options"]
    encoders = inputs["text_encoder"][1]["options"]
    assert encoders == ["gemma-2.0", "gemma-2.3", "gemma-wide"], "weights inside a folder are not offered on their own"
    assert inputs["upsampler"][1]["options"][0] == "none"


@pytest.mark.parametrize(
    ("loader", "images", "strength", "changes"),
    [
        pytest.param(LOADER, False, 1.0, {}, id="2.3 text"),
        pytest.param(LOADER, True, 1.0, {}, id="2.3 images"),
        pytest.param(loader("2.0"), True, 1.0, {}, id="2.0 images"),
        pytest.param(LOADER, True, 0.5, {"preset": "hq"}, id="2.3 hq"),
        pytest.param(
            LOADER, False, 1.0, {"preset": "distilled", "steps": 0, "negative_prompt": ""}, id="2.3 distilled"
        ),
    ],
)
def test_generate_equals_the_separate_nodes(
    host: Any, loader: dict[str, Any], images: bool, strength: float, changes: dict[str, Any]
) -> None:
    prompt = separate(loader, images, **{name: value for name, value in changes.items() if name not in TEXTS})
    prompt["switch"]["inputs"]["strength"] = strength
    apart = host.run(prompt)
    whole = host.run(generate(loader, images, **changes))
    for one, other in zip(latents(apart, "separate"), latents(whole, "generate"), strict=True):
        assert one.std() > 0.05
        assert torch.equal(one, other)
    check_clip(apart["save"][0], WIDTH, HEIGHT, FRAMES, FPS)
    check_clip(whole["save"][0], WIDTH, HEIGHT, FRAMES, FPS)


def test_one_stage_needs_neither_upsampler_nor_lora(host: Any) -> None:
    loader = {**LOADER, "inputs": {**LOADER["inputs"], "upsampler": "none", "distilled_lora": "none"}}  # type: ignore[dict-item]
    changes = {"preset": "one-stage", "height": 96}  # a multiple of 32 only
    prompt = {key: item for key, item in separate(loader, **changes).items() if key in ("loader", "text", "stage1")}
    prompt |= save_latent(["stage1", 1], "separate")
    apart, whole = host.run(prompt), host.run(generate(loader, **changes))
    for one, other in zip(latents(apart, "separate"), latents(whole, "generate"), strict=True):
        assert torch.equal(one, other)
    check_clip(whole["save"][0], WIDTH, 96, FRAMES, FPS)


def test_latents_and_conditioning_pass_through_native_nodes_unchanged(host: Any) -> None:
    plain = latents(host.run(separate()), "separate")
    prompt = separate()
    prompt |= {
        "rate": node("LTXVConditioning", positive=["text", 0], negative=["text", 1], frame_rate=FPS),
        "apart": node("LTXVSeparateAVLatent", av_latent=["stage1", 1]),
        "together": node("LTXVConcatAVLatent", video_latent=["apart", 0], audio_latent=["apart", 1]),
    }
    prompt["stage1"]["inputs"] |= {"positive": ["rate", 0], "negative": ["rate", 1]}
    prompt["up"]["inputs"]["latent"] = ["together", 0]
    for one, other in zip(latents(host.run(prompt), "separate"), plain, strict=True):
        assert torch.equal(one, other)


def test_the_seed_and_the_switch_change_the_result(host: Any) -> None:
    video, _ = latents(host.run(separate()), "separate")
    other_seed, _ = latents(host.run(separate(seed=8)), "separate")
    prompt = separate()
    prompt["switch"]["inputs"]["strength"] = 0.25
    other_strength, _ = latents(host.run(prompt), "separate")
    assert not torch.equal(video, other_seed)
    assert not torch.equal(video, other_strength)


def test_stage_1_can_be_decoded_alone(host: Any) -> None:
    prompt = {key: item for key, item in separate().items() if key in ("loader", "text", "stage1")}
    prompt["decode"] = node("LTX2TwoStageDecode", pipeline=["stage1", 0], latent=["stage1", 1], fps=12.0)
    prompt["save"] = node("SaveVideo", video=["decode", 2], filename_prefix="half", format="auto", codec="auto")
    (path,) = host.run(prompt)["save"]
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert (video.width, video.height, float(video.average_rate)) == (WIDTH // 2, HEIGHT // 2, 12.0)


def test_decode_takes_the_picture_from_another_vae_and_keeps_the_sound(host: Any) -> None:
    prompt = separate()
    del prompt["save"]
    prompt |= {
        "vae": node("StandInVAE"),
        "other": node("LTX2TwoStageDecode", pipeline=["stage2", 0], latent=["stage2", 1], fps=0.0, vae=["vae", 0]),
        "frames": node("SaveImage", images=["other", 0], filename_prefix="frames"),
        "own_sound": node("SaveAudio", audio=["decode", 1], filename_prefix="own"),
        "other_sound": node("SaveAudio", audio=["other", 1], filename_prefix="other"),
        "save": node("SaveVideo", video=["other", 2], filename_prefix="other", format="auto", codec="auto"),
    }
    outputs = host.run(prompt)
    assert len(outputs["frames"]) == FRAMES
    with Image.open(outputs["frames"][0]) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    # The stand-in's frames are gray and flat inside a latent cell, which the pipeline's own never are
    assert (pixels[:32, :32] == pixels[0, 0, 0]).all()
    own, other = (samples(outputs[name][0]) for name in ("own_sound", "other_sound"))
    assert own.std() > 1e-3 and np.array_equal(own, other)
    with av.open(str(outputs["save"][0])) as container:
        assert container.streams.audio


def samples(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=-1).astype(np.float64)


def test_models_stay_loaded_when_other_workflows_run(host: Any) -> None:
    host.run(generate(seed=1))
    opened = host.log.count("opened the models")
    blank = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    host.run({"image": blank, "save": node("SaveImage", images=["image", 0], filename_prefix="other")})
    host.run(generate(seed=2))
    assert host.log.count("opened the models") == opened


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width = 0: must be a multiple of 64"),
        ({"height": -64}, "Value -64 smaller than min of 64"),
        ({"frames": 0}, "Value 0 smaller than min of 1"),
        ({"fps": 0.0}, "Value 0.0 smaller than min of 0.01"),
        ({"preset": "three-stage"}, "'three-stage' not in"),
        ({"width": 100}, "width = 100: must be a multiple of 64 for a two-stage run. Try 64 or 128."),
        ({"height": 96}, "height = 96: must be a multiple of 64"),
        ({"width": 100, "preset": "one-stage"}, "width = 100: must be a multiple of 32 for a one-stage run"),
        ({"frames": 10}, "frames = 10: must be 8 * n + 1. Try 9 or 17."),
        ({"preset": "distilled", "steps": 4}, "steps = 4: the distilled recipe has 8 fixed steps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_when_queued(host: Any, changes: dict[str, Any], message: str) -> None:
    texts = {key: changes.pop(key) for key in list(changes) if key in TEXTS}
    prompt = generate(**changes)
    prompt["all"]["inputs"] |= texts
    assert message in host.refusal(prompt)
    if not texts:
        assert message in host.refusal(separate(**changes))


@pytest.mark.parametrize("kind", [generate, separate])
def test_a_size_that_the_linked_recipe_cannot_make_fails_with_the_fix(host: Any, kind: Callable[..., Prompt]) -> None:
    prompt = {**kind(width=96), "recipe": node("LTX2TwoStageRecipe", **RECIPE)}
    prompt["all" if "all" in prompt else "stage1"]["inputs"]["recipe"] = ["recipe", 0]
    assert "width = 96: must be a multiple of 64 for a two-stage run. Try 64 or 128." in host.failure(prompt)


def test_a_device_mode_that_is_not_there_is_refused_when_queued(host: Any) -> None:
    refusal = host.refusal(generate(loader(device_mode="fast")))
    assert "'fast' not in" in refusal and "snapshot-low" in refusal


def _without_upsample() -> Prompt:
    prompt = separate()
    prompt["stage2"]["inputs"]["latent"] = ["stage1", 1]
    return prompt


def _without_negative() -> Prompt:
    prompt = separate()
    del prompt["stage1"]["inputs"]["negative"]
    return prompt


def _image_outside() -> Prompt:
    prompt = generate(images=True)
    prompt["last"]["inputs"]["frame"] = FRAMES
    return prompt


def _native_latent() -> Prompt:
    prompt = separate()
    prompt["empty"] = node("EmptyLTXVLatentVideo", width=64, height=64, length=9, batch_size=1)
    prompt["up"]["inputs"]["latent"] = ["empty", 0]
    return prompt


def _loader(**changes: str) -> Prompt:
    return generate({**LOADER, "inputs": {**LOADER["inputs"], **changes}})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        pytest.param(_without_upsample(), "Connect LTX-2 Upsample between", id="refine without upsample"),
        pytest.param(_without_negative(), "negative = None: the two-stage preset needs it", id="no negative"),
        pytest.param(_image_outside(), "image frame = 9: the clip has frames 0 to 8", id="image outside the clip"),
        pytest.param(_native_latent(), "is of other models: these have 16 video channels", id="latent of other models"),
        pytest.param(_loader(upsampler="none"), "upsampler = None", id="no upsampler"),
        pytest.param(_loader(distilled_lora="none"), "distilled-lora = None", id="no distilled LoRA"),
    ],
)
def test_bad_graphs_fail_with_the_fix(host: Any, prompt: Prompt, message: str) -> None:
    assert message in host.failure(prompt)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        pytest.param({"upsampler": "a-lora.safetensors"}, ["a-lora.safetensors", "(LoRA)"], id="LoRA as upsampler"),
        pytest.param({"checkpoint": "cut.safetensors"}, ["cut.safetensors", "is truncated"], id="half a checkpoint"),
        pytest.param({"text_encoder": "gemma-wide"}, ["gemma-wide", "hidden size of 96"], id="wide text encoder"),
        pytest.param(
            {"distilled_lora": loader("2.0")["inputs"]["distilled_lora"]},
            ["it looks like a LoRA for LTX-2.0"],
            id="LoRA of LTX-2",
        ),
        pytest.param(
            {"upsampler": loader("2.0")["inputs"]["upsampler"]},
            [
                "is of LTX-2.0, the checkpoint is of LTX-2.3",
                "ltx-2.3-spatial-upscaler-x2-1.1.safetensors (1.0 GB, from",
            ],
            id="upsampler of LTX-2",
        ),
        pytest.param({"checkpoint": "ltx-2-19b-dev.safetensors"}, ["LTX-2.0"], id="all but the checkpoint"),
        pytest.param(
            {"checkpoint": "ltx-2.3-22b-distilled-1.1.safetensors.old"},
            ["there is no such file in models/checkpoints or models/diffusion_models", "The released file is ltx-2.3"],
            id="no such file",
        ),
        pytest.param(
            {"text_encoder": "gemma_3_12B_it.safetensors"},
            ["Get it from Comfy-Org/ltx-2", "24.4 GB, Gemma Terms of Use", "LTX-2 Download", "models/text_encoders"],
            id="released file that is not there",
        ),
        pytest.param({"text_encoder": "none"}, ["text_encoder = 'none'", "gemma_3_12B_it"], id="no text encoder"),
    ],
)
def test_files_that_do_not_fit_are_refused_when_queued(host: Any, changes: dict[str, str], messages: list[str]) -> None:
    opened = host.log.count("opened the models")
    for prompt in (_loader(**changes), _loader(**changes)):  # the second time it is known without reading
        refusal = host.refusal(prompt)
        assert all(message in refusal for message in messages), refusal
    assert host.log.count("opened the models") == opened


def test_a_file_that_is_no_lora_is_refused_when_queued(host: Any) -> None:
    prompt = generate()
    prompt["style"] = node("LTX2TwoStageLoRA", pipeline=["loader", 0], lora="x", strength=1.0, stage="both")
    prompt["all"]["inputs"]["pipeline"] = ["style", 0]
    assert "there is no such file in models/loras" in host.refusal(prompt)
    prompt["style"]["inputs"]["lora"] = "no-lora.safetensors"
    assert "is no LoRA" in host.refusal(prompt)


def test_a_file_that_was_refused_is_looked_at_again_when_it_changes(host: Any) -> None:
    path = host.base / "models" / "latent_upscale_models" / "changing.safetensors"
    good = path.with_name(str(LOADER["inputs"]["upsampler"])).read_bytes()  # type: ignore[index]
    path.write_bytes(good[:-100])
    assert "is truncated" in host.refusal(_loader(upsampler=path.name))
    path.write_bytes(good)
    prompt = _loader(upsampler=path.name)
    prompt["all"]["inputs"]["preset"] = "hq"
    host.run(prompt)


def test_an_interrupt_stops_the_run_and_leaves_the_next_one_as_it_was(host: Any) -> None:
    before = latents(host.run(generate(seed=21)), "generate")
    running = host.queue(generate(seed=22, steps=500))
    deadline = time.monotonic() + 240
    while not (stage := host.get("/ltx2/status")["stage"] or {"done": 0})["done"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 0 < stage["done"] < stage["total"] == 500, "it is in stage 1"
    host.post("/interrupt", {})
    while not host.get(f"/history/{running}"):
        stage = host.get("/ltx2/status")["stage"] or stage
    status = host.wait(running)["status"]
    assert stage["done"] < 400, "the other steps were not done"
    assert status["status_str"] == "error"
    assert "execution_interrupted" in dict(status["messages"])
    # Another step count in between, so that the answer cannot come from ComfyUI's cache
    host.run(generate(seed=21, steps=3))
    after = latents(host.run(generate(seed=21)), "generate")
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
