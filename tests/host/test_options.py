"""What changes a run inside ComfyUI: recipes, LoRAs, a given sound, the last frame; and what is refused of it."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from host_graphs import RECIPE, Prompt, loader, node
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

WIDTH, HEIGHT, FRAMES, FPS, SEED = 128, 64, 9, 24.0, 7
SOUND_RATE = 22050


def generate(**changes: Any) -> Prompt:
    clip = {"preset": "two-stage", "width": WIDTH, "height": HEIGHT, "frames": FRAMES, "fps": FPS, "seed": SEED}
    return {
        "loader": loader(),
        "all": node(
            "LTX2TwoStageGenerate",
            **{
                "pipeline": ["loader", 0],
                "prompt": "A red kite climbs.",
                "negative_prompt": "",
                "steps": 2,
                **clip,
                **changes,
            },
        ),
        "apart": node("LTXVSeparateAVLatent", av_latent=["all", 3]),
        "video": node("SaveLatent", samples=["apart", 0], filename_prefix="video"),
        "audio": node("SaveLatent", samples=["apart", 1], filename_prefix="audio"),
    }


def latents(host: Any, prompt: Prompt) -> tuple[Tensor, Tensor]:
    outputs = host.run(prompt)
    return load_file(outputs["video"][0])["latent_tensor"], load_file(outputs["audio"][0])["latent_tensor"]


def with_recipe(**changes: Any) -> Prompt:
    return {**generate(recipe=["recipe", 0]), "recipe": node("LTX2TwoStageRecipe", **{**RECIPE, **changes})}


def test_a_recipe_of_presets_is_the_preset_and_replaces_the_nodes_own(host: Any) -> None:
    plain, _ = latents(host, generate())
    prompt = with_recipe()
    prompt["all"]["inputs"] |= {"preset": "hq", "steps": 5}
    assert torch.equal(latents(host, prompt)[0], plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"video_cfg": 1.5},
        {"audio_stg": 0.0},
        {"video_modality": 1.0},
        {"video_rescale": 0.0},
        {"video_blocks": "0, 2"},
        {"distilled_strength_2": 0.5},
        {"sampler": "gradient_estimation", "steps": 3},
        {"revision": "1.0.0"},
        {"sigmas": "1, 0.7, 0", "steps": 0},
        {"refine_sigmas": "0.9, 0"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_override_reaches_the_result(host: Any, changes: dict[str, Any]) -> None:
    plain, _ = latents(host, with_recipe(steps=changes.get("steps") or 2))
    assert not torch.equal(latents(host, with_recipe(**changes))[0], plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "best"}, "recipe = 'best': is not a known recipe"),
        ({"sampler": "heun"}, "sampler = 'heun': is not a known choice"),
        ({"video_cfg": -3.0}, "video_cfg = -3.0: must be a number between -1.0 and 100.0"),
        ({"audio_cfg": float("nan")}, "audio_cfg = nan"),
        ({"video_blocks": "a"}, "video_blocks = 'a': is no list of numbers"),
        ({"video_blocks": "none"}, "video-guidance blocks = '': STG needs at least one block"),
        ({"video_stg": 0.0, "video_blocks": "1"}, "video-guidance blocks = [1]: the STG scale is 0"),
        ({"preset": "hq", "video_stg": 1.0, "video_blocks": "1"}, "the hq recipe is made without STG"),
        ({"preset": "distilled", "steps": 3}, "steps = 3: the distilled recipe has 8 fixed steps"),
        ({"preset": "one-stage", "audio_source": "stage2"}, "the one-stage recipe has no stage 2"),
        ({"sigmas": "1, 0.5", "steps": 0}, "sigmas = [1.0, 0.5]: must begin at 1 or below and end in 0"),
        ({"revision": "old"}, "revision = 'old': is not a known choice"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_recipe_that_cannot_work_is_refused_when_queued(host: Any, changes: dict[str, Any], message: str) -> None:
    assert message in host.refusal(with_recipe(**changes))


def test_a_block_that_the_model_lacks_fails_before_weights_are_read(host: Any) -> None:
    message = host.failure(with_recipe(video_blocks="28"))
    assert "video-guidance blocks = 28: the model has blocks 0 to 2" in message


def stacked(*loras: tuple[str, float, str], **changes: Any) -> Prompt:
    """Generate with LoRAs in a row."""
    prompt, last = generate(**changes), "loader"
    for number, (name, strength, stage) in enumerate(loras):
        prompt[f"lora{number}"] = node(
            "LTX2TwoStageLoRA", pipeline=[last, 0], lora=name, strength=strength, stage=stage
        )
        last = f"lora{number}"
    prompt["all"]["inputs"]["pipeline"] = [last, 0]
    return prompt


def test_loras_change_their_stage_and_leave_the_checkpoint_loaded(host: Any) -> None:
    plain = latents(host, stacked(seed=31))
    opened = host.log.count("opened the models")
    style = "style.safetensors"
    first = latents(host, stacked((style, 0.8, "stage 1"), seed=31))
    second = latents(host, stacked((style, 0.8, "stage 2"), seed=31))
    both = latents(host, stacked((style, 0.8, "both"), seed=31))
    # The sound is stage 1's, and a LoRA of stage 2 does not reach it
    assert torch.equal(second[1], plain[1]) and not torch.equal(first[1], plain[1])
    assert torch.equal(both[1], first[1])
    results = [result[0] for result in (plain, first, second, both)]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    twice = latents(host, stacked((style, 0.5, "both"), (style, 0.3, "both"), seed=31))
    # The strengths' sum is rounded once more than 0.8 itself
    assert (twice[0] - both[0]).abs().max() < 1e-4
    none = latents(host, stacked((style, 0.0, "both"), seed=31))
    assert torch.equal(none[0], plain[0])
    assert torch.equal(latents(host, stacked((style, 0.8, "both"), seed=31, steps=2))[0], both[0])
    assert host.log.count("opened the models") == opened
    assert host.log.count("Loaded Gemma") <= 1 or host.log.count("opened the models") > 1


def test_a_lora_of_another_generation_fails_with_the_fix(host: Any) -> None:
    message = host.failure(stacked(("ltx-2-19b-distilled-lora-384.safetensors", 1.0, "both")))
    assert "lora = " in message and "LTX-2.3" in message
    assert "Value 1000.0 bigger than max of 100.0" in host.refusal(stacked(("style.safetensors", 1000.0, "both")))


@pytest.fixture
def sound(host: Any) -> str:
    """A file for LoadAudio: half a second of two tones, one on each side."""
    seconds = np.arange(SOUND_RATE // 2) / SOUND_RATE
    samples = np.stack([np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 660 * seconds)], axis=1) * 0.5
    path: Path = host.base / "input" / "tones.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path.name


def test_a_given_sound_is_kept_and_drives_the_picture(host: Any, sound: str) -> None:
    plain = latents(host, generate())
    prompt = generate(audio=["sound", 0])
    prompt |= {
        "sound": node("LoadAudio", audio=sound),
        "heard": node("SaveAudio", audio=["all", 2], filename_prefix="heard"),
        "clip": node("SaveVideo", video=["all", 0], filename_prefix="sung", format="auto", codec="auto"),
    }
    outputs = host.run(prompt)
    video = load_file(outputs["video"][0])["latent_tensor"]
    assert not torch.equal(video, plain[0])
    with av.open(str(outputs["heard"][0])) as container:
        heard = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=-1).reshape(-1)
        assert container.streams.audio[0].rate == SOUND_RATE
    assert len(heard) == 2 * round(FRAMES / FPS * SOUND_RATE)
    with av.open(str(outputs["clip"][0])) as container:
        assert container.streams.audio and container.streams.video[0].frames == FRAMES

    # The separate nodes carry it along
    apart = {key: item for key, item in prompt.items() if key in ("loader", "sound")}
    clip = {key: value for key, value in prompt["all"]["inputs"].items() if not key.endswith("prompt")}
    apart |= {
        "text": node("LTX2TwoStageTextEncode", pipeline=["loader", 0], prompt="A red kite climbs.", negative_prompt=""),
        "stage1": node("LTX2TwoStageDenoise", **{**clip, "positive": ["text", 0], "negative": ["text", 1]}),
        "up": node("LTX2TwoStageUpsample", pipeline=["stage1", 0], latent=["stage1", 1]),
        "all": node(
            "LTX2TwoStageRefine", pipeline=["stage1", 0], positive=["text", 0], latent=["up", 0], audio_source="preset"
        ),
        "decode": node("LTX2TwoStageDecode", pipeline=["all", 0], latent=["all", 1], fps=0.0),
        "apart": node("LTXVSeparateAVLatent", av_latent=["all", 1]),
        "video": prompt["video"],
        "heard": node("SaveAudio", audio=["decode", 1], filename_prefix="apart"),
    }
    outputs = host.run(apart)
    assert torch.equal(load_file(outputs["video"][0])["latent_tensor"], video)
    with av.open(str(outputs["heard"][0])) as container:
        again = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=-1).reshape(-1)
    assert np.array_equal(again, heard)


def test_an_input_sound_that_is_not_there_fails_with_the_fix(host: Any) -> None:
    assert "audio-source = 'input'" in host.failure(with_recipe(audio_source="input"))


def test_minus_one_is_the_last_frame_and_two_images_may_share_one(host: Any) -> None:
    def images(*frames: int) -> Prompt:
        prompt = generate(images=[f"image{len(frames) - 1}", 0])
        prompt["picture"] = node("LoadImage", image="example.png")
        for number, frame in enumerate(frames):
            before = {"images": [f"image{number - 1}", 0]} if number else {}
            prompt[f"image{number}"] = node(
                "LTX2TwoStageImageCondition", image=["picture", 0], frame=frame, strength=1.0, **before
            )
        return prompt

    assert torch.equal(latents(host, images(0, -1))[0], latents(host, images(0, FRAMES - 1))[0])
    assert not torch.equal(latents(host, images(-1, 8))[0], latents(host, images(-1))[0])
