"""Our nodes among ComfyUI's own: latents from files that know nothing of us, and the report of what ran."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import torch
from host_graphs import TEXTS, Prompt, loader, node, save_latent
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

WIDTH, HEIGHT, FRAMES, FPS, SEED = 128, 64, 9, 24.0, 7
CLIP = {"preset": "two-stage", "width": WIDTH, "height": HEIGHT, "frames": FRAMES, "fps": FPS, "seed": SEED, "steps": 2}


def start() -> Prompt:
    return {
        "loader": loader(),
        "text": node("LTX2TwoStageTextEncode", pipeline=["loader", 0], **TEXTS),
        "stage1": node(
            "LTX2TwoStageDenoise", pipeline=["loader", 0], positive=["text", 0], negative=["text", 1], **CLIP
        ),
    }


def rest(first: list[Any], **refine: Any) -> Prompt:
    """From the latent of stage 1 to a video."""
    return {
        "up": node("LTX2TwoStageUpsample", pipeline=["loader", 0], latent=first),
        "stage2": node(
            "LTX2TwoStageRefine",
            pipeline=["loader", 0],
            positive=["text", 0],
            latent=["up", 0],
            audio_source="preset",
            **refine,
        ),
        "decode": node("LTX2TwoStageDecode", pipeline=["stage2", 0], latent=["stage2", 1], fps=0.0),
        "save": node("SaveVideo", video=["decode", 2], filename_prefix="clip", format="auto", codec="auto"),
    }


def read(outputs: dict[str, list[Path]], *names: str) -> list[Tensor]:
    return [load_file(outputs[name][0])["latent_tensor"] for name in names]


@pytest.fixture(scope="module")
def files(host: Any) -> dict[str, list[Path]]:
    """The latents of a whole run, and those of its stage 1 where the host's Load Latent finds them."""
    prompt = {**start(), **rest(["stage1", 1]), **save_latent(["stage1", 1], "first"), **save_latent(["up", 0], "up")}
    prompt |= save_latent(["stage2", 1], "final")
    outputs: dict[str, list[Path]] = host.run(prompt)
    for stream in ("video", "audio"):
        shutil.copy(outputs[f"first{stream}"][0], host.base / "input" / f"native_{stream}.latent")
    return outputs


NATIVE: Prompt = {
    "video": node("LoadLatent", latent="native_video.latent"),
    "audio": node("LoadLatent", latent="native_audio.latent"),
    "av": node("LTXVConcatAVLatent", video_latent=["video", 0], audio_latent=["audio", 0]),
}


def native(**refine: Any) -> Prompt:
    """The second half of a run on latents that carry nothing of ours."""
    prompt = {key: item for key, item in start().items() if key != "stage1"}
    return {**prompt, **NATIVE, **rest(["av", 0], **refine)}


def test_native_latents_go_the_rest_of_the_way_as_our_own(host: Any, files: dict[str, list[Path]]) -> None:
    prompt = {
        **native(preset="two-stage", fps=FPS, seed=SEED),
        **save_latent(["up", 0], "up"),
        **save_latent(["stage2", 1], "final"),
    }
    outputs = host.run(prompt)
    names = ("upvideo", "upaudio", "finalvideo", "finalaudio")
    for found, expected in zip(read(outputs, *names), read(files, *names), strict=True):
        assert expected.std() > 0.05
        assert torch.equal(found, expected)
    with av.open(str(outputs["save"][0])) as one, av.open(str(files["save"][0])) as other:
        for frame, same in zip(one.decode(video=0), other.decode(video=0), strict=True):
            assert np.array_equal(frame.to_ndarray(), same.to_ndarray())


def test_the_rate_may_come_with_native_conditioning(host: Any, files: dict[str, list[Path]]) -> None:
    prompt = native(seed=SEED)  # and the preset that a checkpoint with a distilled LoRA has
    prompt["rate"] = node("LTXVConditioning", positive=["text", 0], negative=["text", 1], frame_rate=FPS)
    prompt["stage2"]["inputs"]["positive"] = ["rate", 0]
    outputs = host.run({**prompt, **save_latent(["stage2", 1], "final")})
    for found, expected in zip(
        read(outputs, "finalvideo", "finalaudio"), read(files, "finalvideo", "finalaudio"), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_video_latent_alone_is_upsampled_and_decoded_to_a_silent_clip(
    host: Any, files: dict[str, list[Path]]
) -> None:
    prompt = {
        "loader": loader(),
        "video": NATIVE["video"],
        "masked": node("SetLatentNoiseMask", samples=["video", 0], mask=["mask", 0]),
        "mask": node("SolidMask", value=1.0, width=2, height=1),
        "up": node("LTX2TwoStageUpsample", pipeline=["loader", 0], latent=["masked", 0]),
        "upvideo": node("SaveLatent", samples=["up", 0], filename_prefix="alone"),
        "decode": node("LTX2TwoStageDecode", pipeline=["loader", 0], latent=["up", 0], fps=FPS),
        "frames": node("SaveImage", images=["decode", 0], filename_prefix="alone"),
        "sound": node("SaveAudio", audio=["decode", 1], filename_prefix="alone"),
        "save": node("SaveVideo", video=["decode", 2], filename_prefix="alone", format="auto", codec="auto"),
    }
    outputs = host.run(prompt)
    assert torch.equal(*read(outputs, "upvideo"), *read(files, "upvideo"))
    assert len(outputs["frames"]) == FRAMES
    with Image.open(outputs["frames"][0]) as picture:
        assert picture.size == (WIDTH, HEIGHT) and np.asarray(picture).std() > 2
    with av.open(str(outputs["sound"][0])) as container:
        parts = list(container.decode(audio=0))
        seconds = sum(part.samples for part in parts) / container.streams.audio[0].rate
    assert not any(part.to_ndarray().any() for part in parts)
    assert seconds == pytest.approx(FRAMES / FPS, abs=0.01)


def _refine(**changes: Any) -> Prompt:
    prompt = native(**{"preset": "two-stage", "fps": FPS, "seed": SEED, **changes})
    return prompt


def _video_alone() -> Prompt:
    prompt = _refine()
    prompt["up"]["inputs"]["latent"] = ["video", 0]
    return prompt


def _silent_without_rate() -> Prompt:
    prompt = _video_alone()
    prompt["decode"]["inputs"]["latent"] = ["video", 0]
    del prompt["stage2"]
    prompt["decode"]["inputs"]["pipeline"] = ["loader", 0]
    return prompt


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        pytest.param(_refine(fps=0.0), "fps = 0.0: the latent does not say", id="no rate"),
        pytest.param(_refine(fps=12.0), "audio latent frames = ", id="another rate than the sound has"),
        pytest.param(_video_alone(), "must hold a video and an audio latent", id="refine without sound"),
        pytest.param(_silent_without_rate(), "fps = 0.0: the latent does not say", id="decode without a rate"),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_native_latents_lack_is_named(host: Any, prompt: Prompt, message: str) -> None:
    assert message in host.failure(prompt)


def sampled(stage: str, **settings: Any) -> dict[str, Any]:
    """The host's own sampler with our transformer."""
    return node(
        "KSampler",
        model=[stage, 0],
        positive=["rate", 0],
        negative=["rate", 1],
        sampler_name="euler",
        scheduler="simple",
        seed=SEED,
        **settings,
    )


def native_samplers() -> Prompt:
    """Both stages by the host's sampler, with our text, upsampler and decoder."""
    prompt = {key: item for key, item in start().items() if key != "stage1"}
    return {
        **prompt,
        **NATIVE,
        "rate": node("LTXVConditioning", positive=["text", 0], negative=["text", 1], frame_rate=FPS),
        "model1": node("LTX2TwoStageModel", pipeline=["loader", 0], stage="stage 1", preset="two-stage"),
        "model2": node("LTX2TwoStageModel", pipeline=["loader", 0], stage="stage 2", preset="two-stage"),
        "guided": node(
            "LTXVSpatioTemporalGuidance",
            model=["model1", 0],
            scale=1.0,
            blocks="1",
            start_percent=0.0,
            end_percent=1.0,
        ),
        "first": sampled("guided", steps=2, cfg=3.0, denoise=1.0, latent_image=["av", 0]),
        "up": node("LTX2TwoStageUpsample", pipeline=["loader", 0], latent=["first", 0]),
        "second": sampled("model2", steps=2, cfg=1.0, denoise=0.5, latent_image=["up", 0]),
        "decode": node("LTX2TwoStageDecode", pipeline=["loader", 0], latent=["second", 0], fps=FPS),
        "save": node("SaveVideo", video=["decode", 2], filename_prefix="native", format="auto", codec="auto"),
    }


def test_the_hosts_sampler_runs_both_stages_on_our_weights_and_leaves_them_as_they_were(
    host: Any, files: dict[str, list[Path]]
) -> None:
    outputs = host.run({**native_samplers(), **save_latent(["first", 0], "one"), **save_latent(["second", 0], "two")})
    names = ("onevideo", "oneaudio", "twovideo", "twoaudio")
    latents = read(outputs, *names)
    assert all(latent.std() > 0.05 and latent.isfinite().all() for latent in latents)
    assert latents[2].shape[-2:] == (2, 4)
    with av.open(str(outputs["save"][0])) as container:
        assert len(list(container.decode(video=0))) == FRAMES
    # Another seed in between, so that nothing comes from ComfyUI's cache
    changed = {**start(), **rest(["stage1", 1])}
    changed["stage1"]["inputs"]["seed"] = 65
    host.run(changed)
    again = host.run({**start(), **rest(["stage1", 1]), **save_latent(["stage2", 1], "final")})
    for found, expected in zip(
        read(again, "finalvideo", "finalaudio"), read(files, "finalvideo", "finalaudio"), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("files")
def test_a_lora_for_our_model_is_sent_to_our_node(host: Any) -> None:
    prompt = native_samplers()
    lora = loader()["inputs"]["distilled_lora"]
    prompt["wrong"] = node("LoraLoaderModelOnly", model=["model1", 0], lora_name=lora, strength_model=1.0)
    prompt["guided"]["inputs"]["model"] = ["wrong", 0]
    assert "Use LTX-2 LoRA before LTX-2 Model" in host.failure(prompt)


STAGES = ["text", "stage_1", "upsample", "stage_2", "decode"]


def reported(output: dict[str, Any]) -> tuple[list[str], str]:
    """Stages of the first table that a node shows, and all of its text."""
    (text,) = output["text"]
    lines = text.splitlines()
    rules = [index for index, line in enumerate(lines) if line.startswith("---")]
    return [line.split()[0] for line in lines[rules[0] + 1 : rules[1]]], text


def with_report(prompt: Prompt, after: list[Any]) -> Prompt:
    return {
        **prompt,
        "report": node("LTX2TwoStageReport", pipeline=["loader", 0], after=after),
        "chart": node("SaveImage", images=["report", 2], filename_prefix="chart"),
        "svg": node("SaveSVGNode", svg=["report", 3], filename_prefix="chart"),
        "json": node("PreviewAny", source=["report", 1]),
    }


def test_separate_nodes_are_reported_as_one_run(host: Any, chosen_mode: str) -> None:
    prompt = {**start(), **rest(["stage1", 1])}
    prompt["stage1"]["inputs"]["seed"] = 61
    outputs = host.outputs(with_report(prompt, ["decode", 0]))
    stages, text = reported(outputs["report"])
    # ComfyUI may have kept the prompt's embeddings from another test, and then nothing was encoded
    assert stages in (STAGES, STAGES[1:])
    assert "two-stage, rules newest, seed 61, on " + ("cpu" if chosen_mode == "original" else "") in text
    assert f"mode: {chosen_mode} (" in text and "base weights" in text and "page-locked host memory: 0.00 GB" in text
    assert reported(outputs["decode"])[0] == stages, "the node at the end of the run shows them too"
    (shown,) = outputs["json"]["text"]
    report = json.loads(shown)
    assert [stage["name"] for stage in report["stages"]] == stages
    assert report["device_bytes"]["base"] > 0 and report["seed"] == 61
    (preview,) = outputs["report"]["images"]
    assert preview["type"] == "temp"
    chart, svg = (host.base / "output" / outputs[name]["images"][0]["filename"] for name in ("chart", "svg"))
    drawing = ElementTree.fromstring(next(host.base.glob(f"output/**/{svg.name}")).read_bytes())
    with Image.open(chart) as picture:
        assert picture.size == (2 * int(drawing.get("width", 0)), 2 * int(drawing.get("height", 0)))
        assert np.asarray(picture).std() > 10


def test_the_report_runs_every_time_and_takes_nothing(host: Any) -> None:
    prompt = with_report({**start(), **rest(["stage1", 1])}, ["decode", 0])
    prompt["stage1"]["inputs"]["seed"] = 62
    first = reported(host.outputs(prompt)["report"])[0]
    again = host.outputs(prompt)
    assert reported(again["report"])[0] == first, "nothing else ran: they are still those of the last run"
    prompt["stage2"]["inputs"]["audio_source"] = "stage2"
    assert reported(host.outputs(prompt)["report"])[0] == ["stage_2", "decode"], "the others came from the cache"


def test_the_report_of_the_whole_recipe_is_that_of_its_node(host: Any) -> None:
    prompt = {
        "loader": loader(),
        "all": node("LTX2TwoStageGenerate", pipeline=["loader", 0], **TEXTS, **{**CLIP, "seed": 63}),
        "json_of_all": node("PreviewAny", source=["all", 4]),
    }
    outputs = host.outputs(with_report(prompt, ["all", 1]))
    own, report = (json.loads(outputs[name]["text"][0]) for name in ("json_of_all", "json"))
    assert report["stages"] == own["stages"]
    assert [stage["name"] for stage in own["stages"]][-4:] == STAGES[1:]
    assert report["recipe"] == "two-stage" and report["seed"] == 63
