"""LATENT and CONDITIONING of other nodes, in the host's Python with its nested tensors and tiny files."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

CHECK = """
import json, logging
from pathlib import Path
folder, = arguments
import torch
from comfy.nested_tensor import NestedTensor

from pack.ltx2_core.errors import LTX2Error
from pack.ltx2_core.loading.model_set import ModelFiles
from pack.ltx2_core.loading.synthetic import write_tiny
from pack.nodes import conversions
from pack.nodes.handle import PIPELINES
from pack.nodes.refine_request import FROM_LATENT, check_upsampled, refine_request
from pack.nodes.stages import Decode, LoRASwitch, Refine, Upsample

files = write_tiny(Path(folder), "2.3")
checkpoint = ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora)
handle = PIPELINES.open(checkpoint, torch.float32, torch.device("cpu"), "auto")
models = handle.pipeline.models
geometry = models.audio_geometry
widths = handle.context_widths
torch.manual_seed(0)
VIDEO = torch.randn(1, models.latent_channels, 2, 2, 4)
AUDIO = torch.randn(1, geometry.channels, 9, geometry.mel_bins)  # 9 frames at 24 per second
facts = {}

def problem(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except LTX2Error as error:
        return str(error)
    return None

def latent(**more):
    return {"samples": NestedTensor((VIDEO, AUDIO)), "batch_index": [0], "somebody": "else", **more}

def masks(*shapes):
    made = [torch.ones(shape) for shape in shapes]
    return made[0] if len(made) == 1 else NestedTensor(made)

def upsampled(given):
    return Upsample.execute(handle, given).args[0]

with torch.inference_mode():
    up = upsampled(latent())
    video, audio = up["samples"].unbind()
    facts["kept"] = sorted(up)
    facts["sizes"] = [list(video.shape), list(audio.shape)]
    facts["sound is the same"] = torch.equal(audio, AUDIO)
    alone = upsampled({"samples": VIDEO, "downscale_ratio_spacial": 32})
    facts["alone"] = torch.equal(alone["samples"], video) and alone["downscale_ratio_spacial"] == 32
    facts["masks"] = {
        name: "noise_mask" in upsampled({"samples": VIDEO if len(shapes) == 1 else NestedTensor((VIDEO, AUDIO)),
                                         "noise_mask": masks(*shapes)})
        for name, shapes in {
            "whole frames": [(1, 1, 2, 1, 1)],
            "old size": [(1, 1, 2, 2, 4)],
            "new size": [(1, 1, 2, 4, 8)],
            "pixels": [(1, 64, 128)],
            "nested whole frames": [(1, 1, 2, 1, 1), tuple(AUDIO.shape)],
            "nested old size": [tuple(VIDEO.shape), tuple(AUDIO.shape)],
        }.items()
    }
    facts["no mask"] = "noise_mask" in upsampled({"samples": VIDEO, "noise_mask": None})

    wrong = {
        "batch": NestedTensor((VIDEO.expand(2, -1, -1, -1, -1), AUDIO.expand(2, -1, -1, -1))),
        "image latent": torch.zeros(1, 4, 8, 8),
        "audio alone": AUDIO,
        "three streams": NestedTensor((VIDEO, AUDIO, AUDIO)),
        "other video": NestedTensor((torch.zeros(1, 3, 2, 2, 4), AUDIO)),
        "other audio": NestedTensor((VIDEO, torch.zeros(1, 3, 9, 4))),
    }
    facts["refused"] = {name: problem(conversions.to_streams, {"samples": s}, handle) for name, s in wrong.items()}

    context = torch.randn(1, 1024, sum(widths))
    positive = [[context, {"pooled_output": None, "frame_rate": 24.0}]]
    big = conversions.to_pair(up, handle)

    def request(given=up, conditioning=positive, preset=FROM_LATENT, fps=0.0, seed=-1, images=None):
        pair = conversions.to_pair(given, handle)
        made = refine_request(given, handle, pair, conditioning, preset, fps, seed, images)
        check_upsampled(handle, pair, made)
        return made

    made = request()
    facts["derived"] = [made.width, made.height, made.frames, made.fps, made.seed, made.recipe.name]
    facts["set"] = [request(preset="hq").recipe.distilled_strength[1], request(seed=5).seed]
    facts["rate of the node first"] = problem(request, fps=12.0)
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("ltx2.nodes").addHandler(handler)
    request({**up, "noise_mask": masks((1, 1, 2, 1, 1))})
    facts["a mask that masks nothing"] = len(records)
    request({**up, "noise_mask": NestedTensor((torch.zeros(1, 1, 2, 1, 1), torch.ones(1, 1, 9, 1)))})
    facts["warned"] = records

    done = Refine.execute(handle, positive, {**up, "noise_mask": masks((1, 1, 2, 1, 1))}, "stage2", seed=3)
    refined = done.args[1]
    facts["refined"] = [sorted(refined), [list(s.shape) for s in refined["samples"].unbind()]]
    own = conversions.own_request(refined)
    facts["request"] = [own.seed, own.fps, own.audio_source.value, own.recipe.name]
    # The latent of a node of ours decides over what the node's settings leave open
    again = request(refined, preset=FROM_LATENT)
    facts["own"] = [again.seed, again.fps, request(refined, seed=9).seed, request(refined, preset="hq").recipe.name]
    facts["decoded"] = list(Decode.execute(handle, refined, 0.0).args[0].shape)

    hints = []
    residency = handle.pipeline.residency
    residency.prefetch = lambda component, strengths: hints.append([component.value, strengths])
    switched = [LoRASwitch.execute(handle, *given).args[0].distilled_strength for given in (
        ("stage 2", 0.25), ("stage 1", 0.5))]
    del residency.prefetch
    facts["switched"], facts["hints"] = switched, hints

    raw = torch.randn(1, 20, sum(widths))
    flag = {"unprocessed_ltxav_embeds": True}
    connected = conversions.to_context([[raw, flag]], handle, "positive")
    facts["connected"] = [list(connected.video.shape), list(connected.audio.shape)]
    long = conversions.to_context([[torch.randn(1, 1025, sum(widths)), flag]], handle, "positive")
    facts["longer than ours"] = list(long.video.shape)
    plain = conversions.to_context([[context, {}]], handle, "positive")
    facts["as it is"] = torch.equal(torch.cat([plain.video, plain.audio], -1), context)
    facts["text refused"] = [
        problem(conversions.to_context, given, handle, "positive")
        for given in ([[context, {}]] * 2, [[context[..., 1:], {}]], [[context[..., 1:], flag]], [[raw[0], flag]])
    ]
print("FACTS" + json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("native")
    return dict(comfyui.facts(CHECK, folder / "tiny", working=folder))


def test_upsample_keeps_what_it_does_not_know_and_the_sound(facts: dict[str, Any]) -> None:
    assert facts["kept"] == ["batch_index", "samples", "somebody"]
    assert facts["sizes"][0][2:] == [2, 4, 8] and facts["sound is the same"] and facts["alone"]


def test_a_mask_that_no_longer_fits_is_dropped(facts: dict[str, Any]) -> None:
    assert facts["masks"] == {
        "whole frames": True,
        "old size": False,
        "new size": True,
        "pixels": False,
        "nested whole frames": True,
        "nested old size": False,
    }
    assert not facts["no mask"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch", "must be one clip"),
        ("image latent", "must hold a video latent"),
        ("audio alone", "must hold a video latent"),
        ("three streams", "must hold a video latent"),
        ("other video", "is of other models"),
        ("other audio", "is of other models"),
    ],
)
def test_other_latents_are_refused(facts: dict[str, Any], name: str, message: str) -> None:
    assert message in facts["refused"][name]


def test_what_stage_2_needs_is_derived_from_a_native_latent(facts: dict[str, Any]) -> None:
    assert facts["derived"] == [256, 128, 9, 24.0, 0, "two-stage"]
    assert facts["set"] == [0.5, 5]
    assert "audio latent frames = 9: must be 19 for 9 frames at 12 frames per second" in facts["rate of the node first"]


def test_a_mask_that_refine_does_not_follow_is_said_aloud(facts: dict[str, Any]) -> None:
    assert facts["a mask that masks nothing"] == 0
    assert len(facts["warned"]) == 1 and "does not follow the latent's noise mask" in facts["warned"][0]


def test_a_refined_native_latent_is_one_of_ours(facts: dict[str, Any]) -> None:
    assert facts["refined"][0] == ["batch_index", "ltx2_two_stage", "samples", "somebody"]
    assert facts["refined"][1] == facts["sizes"]
    assert facts["request"] == [3, 24.0, "stage2", "two-stage"]
    assert facts["own"] == [3, 24.0, 9, "hq"]
    assert facts["decoded"] == [9, 128, 256, 3]


def test_native_conditioning_is_connected_and_processed_one_is_not(facts: dict[str, Any]) -> None:
    (video, audio) = facts["connected"]
    assert video[:2] == audio[:2] == [1, 1024]
    assert facts["longer than ours"][1] > 1025, "filled up to whole sets of registers"
    assert facts["as it is"]
    assert "2 prompts" in facts["text refused"][0]
    assert all("is not made for these models" in message for message in facts["text refused"][1:])


def test_the_switch_makes_the_transformer_ready_with_its_strength(facts: dict[str, Any]) -> None:
    assert facts["switched"] == [[None, 0.25], [0.5, None]]
    (second, first) = facts["hints"]
    assert second[0] == "transformer" and list(second[1].values()) == [0.25]
    assert first[0] == "transformer" and list(first[1].values()) == [0.5]
