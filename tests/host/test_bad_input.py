"""Settings that cannot work reach the user as the error of a node, with the fix, before anything is loaded."""

from __future__ import annotations

import itertools
import json
import wave
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
from host_graphs import RECIPE, Prompt, loader, node
from safetensors.torch import load_file, save_file
from scipy.io import wavfile

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

FRAMES = 9
NEW = itertools.count()


def clip(**changes: Any) -> Prompt:
    """Stage 1 by separate nodes, whose text no run has encoded before."""
    settings = {"preset": "two-stage", "width": 128, "height": 64, "frames": FRAMES, "fps": 24.0, "seed": 3, "steps": 2}
    return {
        "loader": loader(),
        "text": node(
            "LTX2TwoStageTextEncode", pipeline=["loader", 0], prompt=f"Take {next(NEW)}.", negative_prompt="dull"
        ),
        "stage1": node(
            "LTX2TwoStageDenoise",
            pipeline=["loader", 0],
            positive=["text", 0],
            negative=["text", 1],
            **{**settings, **changes},
        ),
        "keep": node("LTXVSeparateAVLatent", av_latent=["stage1", 1]),
        "save": node("SaveLatent", samples=["keep", 0], filename_prefix="bad"),
    }


def with_recipe(**changes: Any) -> Prompt:
    return {**clip(recipe=["recipe", 0]), "recipe": node("LTX2TwoStageRecipe", **{**RECIPE, **changes})}


def with_images(*frames: int, strength: float = 1.0) -> Prompt:
    prompt = clip(images=[f"image{len(frames) - 1}", 0])
    prompt["picture"] = node("LoadImage", image="example.png")
    for number, frame in enumerate(frames):
        before = {"images": [f"image{number - 1}", 0]} if number else {}
        prompt[f"image{number}"] = node(
            "LTX2TwoStageImageCondition", image=["picture", 0], frame=frame, strength=strength, **before
        )
    return prompt


def with_loader(**changes: Any) -> Prompt:
    prompt = clip()
    prompt["loader"]["inputs"] |= changes
    return prompt


def with_lora(name: str) -> Prompt:
    prompt = clip()
    prompt["stage1"]["inputs"]["pipeline"] = ["style", 0]
    prompt["style"] = node("LTX2TwoStageLoRA", pipeline=["loader", 0], lora=name, strength=1.0, stage="both")
    return prompt


def with_sound(name: str) -> Prompt:
    return {**clip(audio=["sound", 0]), "sound": node("LoadAudio", audio=name)}


def without_negative() -> Prompt:
    prompt = clip()
    del prompt["stage1"]["inputs"]["negative"]
    return prompt


@pytest.fixture(scope="module", autouse=True)
def files(host: Any) -> None:
    """What users give by mistake: a film without sound, and a LoRA of layers that no transformer of ours has."""
    with av.open(str(host.base / "input" / "silent.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 64
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with wave.open(str(host.base / "input" / "empty.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(24000)
    import torch

    matrices = {
        "diffusion_model.blocks.7.self_attn.q.lora_A.weight": torch.randn(4, 64),
        "diffusion_model.blocks.7.self_attn.q.lora_B.weight": torch.randn(64, 4),
    }
    save_file(matrices, host.base / "models" / "loras" / "other-model.safetensors")


# Known from the graph alone: refused when queued, in the words of the node that has the setting
REFUSED: dict[str, tuple[Callable[[], Prompt], str]] = {
    "no size": (lambda: clip(width=0), "width = 0: must be a multiple of 64"),
    "no frames": (lambda: clip(frames=-8), "Value -8 smaller than min of 1"),
    "no rate": (lambda: clip(fps=0.0), "Value 0.0 smaller than min of 0.01"),
    "a rate that is no number": (lambda: clip(fps=float("nan")), "fps = nan: must be a positive number."),
    "unknown preset": (lambda: clip(preset="best"), "'best' not in"),
    "width": (lambda: clip(width=96), "width = 96: must be a multiple of 64 for a two-stage run. Try 64"),
    "frames": (lambda: clip(frames=10), "frames = 10: must be 8 * n + 1. Try 9 or 17."),
    "negative scale": (lambda: with_recipe(video_cfg=-0.5), "video_cfg = -0.5: must be a number that is not negative"),
    "no number": (lambda: with_recipe(audio_stg=float("nan")), "audio_stg = nan"),
    "STG without blocks": (lambda: with_recipe(video_blocks="none"), "STG needs at least one block"),
    "blocks without STG": (
        lambda: with_recipe(video_stg=0.0, video_blocks="1"),
        "video-guidance blocks = [1]: the STG scale is 0",
    ),
    "distilled with steps": (
        lambda: with_recipe(preset="distilled", steps=4),
        "steps = 4: the distilled recipe has 8 fixed steps",
    ),
    "one stage, sound of two": (
        lambda: with_recipe(preset="one-stage", audio_source="stage2"),
        "the one-stage recipe has no stage 2",
    ),
    "rising sigmas": (lambda: with_recipe(sigmas="1, 0.5, 0.7, 0", steps=0), "must fall from step to step"),
    "no such file": (
        lambda: with_loader(upsampler="ltx-2.3-spatial-upscaler-x2-1.0.safetensors"),
        "there is no such file in models/latent_upscale_models",
    ),
    "no LoRA's file": (lambda: with_lora("no-lora.safetensors"), "is no LoRA"),
}
# ComfyUI's own check of the input finds it as well
TWICE = ("no such file", "no frames", "no rate")
# Known when the files are open: the node's error, and no text was encoded for it
FAILED: dict[str, tuple[Callable[[], Prompt], str, str]] = {
    "too long": (lambda: clip(fps=0.1), "stage1", "the longest is 60 s. Raise it, or give fewer frames."),
    "too short": (lambda: clip(frames=1, fps=240.0), "stage1", "too short for any sound"),
    "STG block": (lambda: with_recipe(video_blocks="28"), "stage1", "blocks = 28: the model has blocks 0 to 2"),
    "no negative": (without_negative, "stage1", "negative = None: the two-stage preset needs it. Connect"),
    "image outside": (lambda: with_images(FRAMES), "stage1", "image frame = 9: the clip has frames 0 to 8"),
    "no upsampler": (lambda: with_loader(upsampler="none"), "stage1", "upsampler = None: the two-stage recipe needs"),
    "no distilled LoRA": (
        lambda: with_loader(distilled_lora="none"),
        "stage1",
        "distilled-lora = None: the two-stage recipe needs one. Give the distilled LoRA",
    ),
    "LoRA of another model": (lambda: with_lora("other-model.safetensors"), "style", "lora = "),
    "LoRA of another generation": (
        lambda: with_lora("ltx-2-19b-distilled-lora-384.safetensors"),
        "style",
        "it looks like a LoRA for LTX-2.0",
    ),
    "sound that is not given": (
        lambda: with_recipe(audio_source="input"),
        "stage1",
        "audio-source = 'input': the clip is made without a given sound. Give the sound as audio, or choose a stage.",
    ),
    "film without sound": (lambda: with_sound("silent.mp4"), "sound", "No audio stream found"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_graph_alone_tells_is_refused_when_queued(host: Any, name: str) -> None:
    make, message = REFUSED[name]
    refusal = host.refusal(make())
    assert message in refusal
    assert sum(len(node["errors"]) for node in json.loads(refusal).values()) == (2 if name in TWICE else 1)


@pytest.mark.parametrize("name", FAILED)
def test_what_the_files_tell_fails_before_any_text_is_encoded(host: Any, name: str) -> None:
    make, where, message = FAILED[name]
    error = host.failed(make())
    assert message in error["exception_message"]
    assert error["node_id"] == where
    assert not {"text", "stage1"} & set(error["executed"])


def test_the_good_graph_runs(host: Any) -> None:
    host.run(clip())
    host.run(with_images(0, -1))


def test_numbers_that_are_none_are_refused_by_name(host: Any) -> None:
    """In a latent that is loaded, and in a sound: nothing is upsampled or encoded for them."""
    saved = load_file(host.run(clip())["save"][0])
    saved["latent_tensor"][0, 0, 0, 0, 0] = float("nan")
    save_file(saved, host.base / "input" / "nan.latent")
    up = {
        "loader": clip()["loader"],
        "video": node("LoadLatent", latent="nan.latent"),
        "up": node("LTX2TwoStageUpsample", pipeline=["loader", 0], latent=["video", 0]),
        "save": node("SaveLatent", samples=["up", 0], filename_prefix="bad"),
    }
    error = host.failed(up)
    assert (error["node_id"], "latent = " in error["exception_message"]) == ("up", True)
    assert "values that are not finite (NaN or infinity)" in error["exception_message"]
    samples = np.zeros(4800, np.float32)
    samples[100] = np.nan
    with (host.base / "input" / "nan.wav").open("wb") as file:
        wavfile.write(file, 48_000, samples)
    error = host.failed(with_sound("nan.wav"))
    assert (error["node_id"], "audio = " in error["exception_message"]) == ("stage1", True)
    assert "not finite" in error["exception_message"] and "text" not in error["executed"]
