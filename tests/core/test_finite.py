"""Numbers that are none end a run with the stage and its likely cause, before anything is decoded or written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from lora_stacks import Texts, open_pipeline, request_for
from ltx2_two_stage.ltx2_core.errors import LTX2Error, NotFiniteError
from ltx2_two_stage.ltx2_core.finite import FiniteWatch, finite
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.media.mp4 import Mp4Writer
from ltx2_two_stage.ltx2_core.media.sink import NullSink
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.types import AudioClip, Component, ImageCondition, LatentPair, Phase
from torch import Tensor, nn

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return open_pipeline(write_tiny(tmp_path_factory.mktemp("tiny"), dtype="float32"), "original")


@pytest.fixture(scope="module")
def texts(pipeline: Pipeline) -> Texts:
    return pipeline.encode_prompt(request_for("two-stage"))


@pytest.fixture(scope="module")
def latents(pipeline: Pipeline, texts: Texts) -> LatentPair:
    return pipeline.denoise(request_for("two-stage"), *texts)


@pytest.fixture(scope="module")
def upsampled(pipeline: Pipeline, latents: LatentPair) -> LatentPair:
    return pipeline.upsample(latents)


class Spoiled:
    """One row of a component's weights is another number for a while."""

    def __init__(self, pipeline: Pipeline, component: Component, value: float, weight: str = "") -> None:
        strengths = pipeline.models.adapter_strengths(Phase.STAGE_1, (0.0, 1.0))
        adapters = strengths if component is Component.TRANSFORMER else {}
        with pipeline.residency.use(component, adapters) as module:
            assert isinstance(module, nn.Module)
            tensors = [t for n, t in module.state_dict().items() if weight in n and t.is_floating_point()]
        self._tensor, self._value = max(tensors, key=Tensor.numel), value

    def __enter__(self) -> None:
        self._kept = self._tensor.clone()
        self._tensor[0] = self._value

    def __exit__(self, *error: object) -> None:
        self._tensor.copy_(self._kept)


def encode(pipeline: Pipeline) -> None:
    pipeline.encode_prompt(replace(request_for("two-stage"), prompt=f"another {time.perf_counter_ns()}"))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("component", "weight", "words"),
    [
        (Component.TEXT_ENCODER, "layers.0.self_attn.q_proj", "text encoding: what the text encoder makes.*gemma"),
        (Component.TEXT_CONNECTOR, "", "text encoding: the prompt's embedding.*ltx-2.3-22b-dev"),
        (Component.TRANSFORMER, "patchify_proj", "stage 1: the latent of video.*a damaged file.*cfg that is too high"),
        (Component.UPSAMPLER, "", "upsampling: the upsampled latent.*ltx-2.3-spatial"),
        (Component.VIDEO_DECODER, "conv_in", "decoding: the picture that the video decoder makes.*22b-dev"),
        (Component.VIDEO_DECODER, "conv_out.conv.bias", "decoding: the picture that the video decoder makes"),
        (Component.AUDIO_DECODER, "", "decoding: the spectrogram that the audio decoder makes"),
        (Component.VOCODER, "conv_post", "decoding: the sound that the vocoder makes"),
    ],
    ids=lambda value: getattr(value, "value", ""),
)
def test_a_damaged_weight_is_an_error_of_its_stage(
    pipeline: Pipeline, texts: Texts, latents: LatentPair, upsampled: LatentPair, tmp_path: Path, value: float,
    component: Component, weight: str, words: str,
) -> None:  # fmt: skip
    request = replace(request_for("two-stage"), width=128, height=64)
    stages: dict[Component, Callable[[], object]] = {
        Component.TEXT_ENCODER: lambda: encode(pipeline),
        Component.TEXT_CONNECTOR: lambda: encode(pipeline),
        Component.TRANSFORMER: lambda: pipeline.denoise(request, *texts),
        Component.UPSAMPLER: lambda: pipeline.upsample(latents),
    }
    target = tmp_path / "clip.mp4"

    def decode() -> None:
        with Mp4Writer(target) as writer:
            pipeline.decode(request, upsampled, writer)

    with Spoiled(pipeline, component, value, weight), pytest.raises(NotFiniteError, match=words):
        stages.get(component, decode)()
    assert list(tmp_path.iterdir()) == []


def nan_like(tensor: Tensor) -> Tensor:
    spoiled = tensor.clone()
    spoiled.view(-1)[-1] = NAN
    return spoiled


class Untouched(NullSink):
    def open(self, *arguments: Any) -> None:
        raise AssertionError("nothing is decoded")


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_a_given_latent_is_refused_by_its_name(
    pipeline: Pipeline, texts: Texts, latents: LatentPair, upsampled: LatentPair, stream: str
) -> None:
    def spoiled(pair: LatentPair) -> LatentPair:
        return replace(pair, **{stream: nan_like(getattr(pair, stream))})

    request = request_for("two-stage")
    with pytest.raises(NotFiniteError, match="decoding: the latent that was given"):
        pipeline.decode(request, spoiled(upsampled), Untouched())
    with pytest.raises(NotFiniteError, match="stage 2: the latent that was given"):
        pipeline.refine(request, spoiled(upsampled), texts[0])
    if stream == "video":
        with pytest.raises(NotFiniteError, match="upsampling: the latent that was given"):
            pipeline.upsample(spoiled(latents))


@pytest.mark.parametrize("stream", ["video", "audio"])
@pytest.mark.parametrize("which", [0, 1], ids=["positive", "negative"])
def test_a_given_embedding_is_refused_by_its_name(pipeline: Pipeline, texts: Texts, stream: str, which: int) -> None:
    context: Any = texts[which]
    given: list[Any] = list(texts)
    given[which] = replace(context, **{stream: nan_like(getattr(context, stream))})
    name = ("positive", "negative")[which]
    with pytest.raises(NotFiniteError, match=f"stage 1: the {name} prompt's embedding"):
        pipeline.denoise(request_for("two-stage"), *given)


def test_an_encoder_that_is_damaged_is_named(pipeline: Pipeline, texts: Texts) -> None:
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    request = replace(request_for("two-stage"), images=(ImageCondition(image, 0, 1.0),), image_crf=0)
    with Spoiled(pipeline, Component.VIDEO_ENCODER, NAN), pytest.raises(NotFiniteError, match="an image's latent"):
        pipeline.denoise(request, *texts)
    sound = AudioClip(torch.randn(1, 2, 8000) * 0.1, 16000)
    with Spoiled(pipeline, Component.AUDIO_ENCODER, NAN), pytest.raises(NotFiniteError, match="given sound's latent"):
        pipeline.denoise(replace(request_for("two-stage"), audio=sound), *texts)


def test_a_prompt_that_failed_is_encoded_anew(pipeline: Pipeline) -> None:
    request = replace(request_for("two-stage"), prompt="a third one")
    with Spoiled(pipeline, Component.TEXT_CONNECTOR, NAN), pytest.raises(LTX2Error):
        pipeline.encode_prompt(request)
    context, _ = pipeline.encode_prompt(request)
    assert finite(context.video, context.audio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_watch_waits_only_when_it_is_asked(dtype: torch.dtype) -> None:
    good, watch = torch.randn(3, 5, 7).to(dtype), FiniteWatch()
    with HostWaits() as waits:
        for tensor in (good, good.transpose(0, 2), good[:0]):
            watch.see(tensor)
    assert waits.seen == [] and watch.ok()
    for value in (NAN, INF, -INF):
        spoiled = good.clone()
        spoiled[1, 2, 3] = value
        watch = FiniteWatch()
        watch.see(good, spoiled)
        assert not watch.ok()
