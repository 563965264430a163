"""Settings that cannot work reach the user as the error of a node, with the fix, before anything is loaded."""

from __future__ import annotations

import itertools
import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from host_graphs import RECIPE, Prompt, loader, node
from ltx2_two_stage import cli
from safetensors.torch import load_file, save_file
from scipy.io import wavfile

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

FRAMES = 9
DISTILLED = "of-my-own-distilled.safetensors"
DISTILLED_LORA = "ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
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
    matrices = {
        "diffusion_model.blocks.7.self_attn.q.lora_A.weight": torch.randn(4, 64),
        "diffusion_model.blocks.7.self_attn.q.lora_B.weight": torch.randn(64, 4),
    }
    save_file(matrices, host.base / "models" / "loras" / "other-model.safetensors")
    checkpoints = host.base / "models" / "checkpoints"
    shutil.copy(checkpoints / "ltx-2.3-22b-dev.safetensors", checkpoints / DISTILLED)
    wavfile.write(host.base / "input" / "tone.wav", 24_000, np.sin(np.arange(4800) / 9).astype(np.float32))


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


def with_spoilt_image() -> Prompt:
    """The picture is decoded from the latent that has a NaN."""
    prompt = with_images(0)
    prompt["loaded"] = node("LoadLatent", latent="nan.latent")
    prompt["vae"] = node("StandInVAE")
    prompt["decoded"] = node("VAEDecode", samples=["loaded", 0], vae=["vae", 0])
    prompt["picture"] = node("ImageFromBatch", image=["decoded", 0], batch_index=0, length=1)
    return prompt


def test_a_picture_of_no_numbers_is_refused_by_name(host: Any) -> None:
    save_file({"latent_tensor": torch.full((1, 128, 2, 1, 2), torch.nan)}, host.base / "input" / "nan.latent")
    error = host.failed(with_spoilt_image())
    assert (error["node_id"], "image = " in error["exception_message"]) == ("image0", True)
    assert "not finite" in error["exception_message"] and not {"text", "stage1"} & set(error["executed"])


def test_what_is_left_out_or_added_up_is_said_on_the_node(host: Any) -> None:
    """A fourth channel, one LoRA given twice for a stage, and the distilled LoRA beside itself."""
    prompt = with_images(0)
    prompt["opaque"] = prompt.pop("picture")
    prompt["mask"] = node("SolidMask", value=1.0, width=8, height=8)
    prompt["picture"] = node("JoinImageWithAlpha", image=["opaque", 0], alpha=["mask", 0])
    names = ("style.safetensors", "style.safetensors", DISTILLED_LORA)
    for number, name in enumerate(names):
        before = [f"lora{number - 1}", 0] if number else ["loader", 0]
        prompt[f"lora{number}"] = node("LTX2TwoStageLoRA", pipeline=before, lora=name, strength=0.5, stage="both")
    prompt["stage1"]["inputs"] |= {"pipeline": ["lora2", 0], "steps": 1}
    (text,) = host.outputs(prompt)["stage1"]["text"]
    for words in (
        "image is transparent in 100% of its pixels",
        "The LoRA style.safetensors is given more than once: its strengths add up to 1 in stage 1 and 1 in stage 2.",
        f"Stage 2 runs 2 distilled LoRAs at once: {DISTILLED_LORA} and the one given as such.",
    ):
        assert words in text


def whole(**changes: Any) -> Prompt:
    """The clip in one node, whose texts the queued graph has."""
    settings = {"preset": "distilled", "width": 128, "height": 64, "frames": FRAMES, "fps": 24.0, "seed": 3, "steps": 0}
    texts = {"prompt": "waves", "negative_prompt": ""}
    made = node("LTX2TwoStageGenerate", pipeline=["loader", 0], **{**texts, **settings, **changes})
    return {"loader": loader(), "made": made, "save": node("SaveImage", images=["made", 1], filename_prefix="bad")}


def of(prompt: Prompt, **files: str) -> Prompt:
    prompt["loader"]["inputs"] |= files
    return prompt


def _sound_guided() -> Prompt:
    prompt = {**with_recipe(audio_cfg=4.0), "sound": node("LoadAudio", audio="tone.wav")}
    prompt["stage1"]["inputs"]["audio"] = ["sound", 0]
    return prompt


def _with_distilled_lora() -> Prompt:
    prompt = with_lora(DISTILLED_LORA)
    prompt["stage1"]["inputs"] |= {"preset": "distilled", "steps": 0}
    return of(prompt, checkpoint=DISTILLED, distilled_lora="none")


# The graph, and what differs on the command line: None leaves an option out, a name is that of a file
BOTH: dict[str, tuple[Callable[[], Prompt], dict[str, str | None], str]] = {
    "a guided recipe on a distilled checkpoint": (
        lambda: of(clip(), checkpoint=DISTILLED),
        {"checkpoint": f"models/checkpoints/{DISTILLED}"},
        f"recipe = 'two-stage': guides its steps, and {DISTILLED} is a distilled checkpoint",
    ),
    "the distilled recipe on a dev checkpoint alone": (
        lambda: of(clip(preset="distilled", steps=0), distilled_lora="none"),
        {"recipe": "distilled", "steps": None, "distilled-lora": None},
        "recipe = 'distilled': makes unguided steps",
    ),
    "a distilled LoRA on a distilled checkpoint": (
        _with_distilled_lora,
        {
            "recipe": "distilled",
            "steps": None,
            "checkpoint": f"models/checkpoints/{DISTILLED}",
            "distilled-lora": None,
            "lora": f"models/loras/{DISTILLED_LORA}:1",
        },
        f"lora = '{DISTILLED_LORA}': {DISTILLED} is a distilled checkpoint",
    ),
    "guidance of a given sound": (
        _sound_guided,
        {"audio": "input/tone.wav", "audio-guidance": "cfg=4"},
        "audio-guidance cfg = 4.0: the sound is given",
    ),
    "a negative prompt that nothing reads": (
        lambda: whole(negative_prompt="dull"),
        {"recipe": "distilled", "steps": None, "negative-prompt": "dull"},
        "negative-prompt = 'dull': the distilled recipe guides nothing away from it here",
    ),
}


def told_by_the_command_line(folder: Path, changes: dict[str, str | None], capsys: pytest.CaptureFixture[str]) -> str:
    options: dict[str, str | None] = {
        "checkpoint": "models/checkpoints/ltx-2.3-22b-dev.safetensors",
        "gemma": "models/text_encoders/gemma-2.3",
        "upsampler": "models/latent_upscale_models/ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "distilled-lora": f"models/loras/{DISTILLED_LORA}",
        "prompt": "waves",
        "width": "128",
        "height": "64",
        "frames": str(FRAMES),
        "steps": "2",
        "device": "cpu",
        "output": "never.mp4",
        **changes,
    }
    files = ("models/", "input/", "never")
    named = {name: value for name, value in options.items() if value is not None}
    words = [(f"--{name}", str(folder / v) if v.startswith(files) else v) for name, v in named.items()]
    assert cli.main(["generate", "--quiet", *(word for pair in words for word in pair)]) == 2
    return capsys.readouterr().err.removeprefix("ltx2: error: ").strip()


@pytest.mark.parametrize("name", BOTH)
def test_nodes_and_command_line_refuse_the_same_with_the_same_words(
    host: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, changes, begins = BOTH[name]
    told = told_by_the_command_line(host.base, changes, capsys)
    prompt = make()
    if "made" in prompt:
        (refused,) = json.loads(host.refusal(prompt)).values()
        found = refused["errors"][0]["details"]
    else:
        found = host.failed(prompt)["exception_message"]
    assert told.startswith(begins) and told in found
