"""Images at any frame and a given sound, through the stages of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.loading.model_set import ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.media.sink import NullSink
from ltx2_two_stage.ltx2_core.models.transformer.graphs import GraphedCalls
from ltx2_two_stage.ltx2_core.models.transformer.positions import video_positions
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.recipe_choice import GuidanceChoice, RecipeChoice
from ltx2_two_stage.ltx2_core.recipes import REVISIONS, AudioSource
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.sampling.state import StreamState
from ltx2_two_stage.ltx2_core.stages import condition
from ltx2_two_stage.ltx2_core.stages.plan import placed_images, plan_stages
from ltx2_two_stage.ltx2_core.types import (
    AudioClip,
    BatchItem,
    Component,
    ImageCondition,
    LatentPair,
    Phase,
    PromptContext,
)
from PIL import Image
from torch import Tensor

RATE = 16000  # of the tiny audio models
WIDTH, HEIGHT, FRAMES, FPS = 128, 64, 17, 24.0
Texts = tuple[PromptContext, PromptContext | None]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), dtype="float32")
    models = ModelSet.open(
        ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora), torch.float32
    )
    return Pipeline(models, open_manager(models, torch.device("cpu"), "original"))


def request_for(preset: str = "two-stage", steps: int | None = 2, **changes: Any) -> GenerationRequest:
    recipe = RecipeChoice(preset, steps).recipe("2.3", 3)
    size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "fps": FPS}
    return GenerationRequest("waves", recipe, "still", image_crf=0, **{**size, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def texts(pipeline: Pipeline) -> Texts:
    return pipeline.encode_prompt(request_for())


def picture(seed: int) -> Tensor:
    noise = torch.randint(0, 256, (80, 90, 3), generator=torch.Generator().manual_seed(seed))
    return noise.to(torch.uint8)


def sound(seconds: float, channels: int = 2, rate: int = RATE, seed: int = 0) -> AudioClip:
    generator = torch.Generator().manual_seed(seed)
    return AudioClip(torch.randn(1, channels, round(seconds * rate), generator=generator) * 0.2, rate)


def both_stages(pipeline: Pipeline, texts: Texts, request: GenerationRequest) -> tuple[LatentPair, LatentPair]:
    first = pipeline.denoise(request, *texts)
    return first, pipeline.refine(request, pipeline.upsample(first), texts[0])


@pytest.mark.parametrize(
    ("revision", "frame", "index"),
    [
        ("newest", 0, 0),
        ("newest", 5, 5),
        ("newest", -1, 16),
        ("newest", -17, 0),
        ("1.0.0", -1, 16),
        ("2026-01", 2, 2),
        ("2026-01", -1, 2),
        ("2026-01", -3, 0),
    ],
)
def test_frames_count_from_both_ends_by_the_revisions_rule(
    pipeline: Pipeline, revision: str, frame: int, index: int
) -> None:
    request = request_for(images=(ImageCondition(picture(0), frame, 0.5),), revision=REVISIONS[revision])
    pipeline.validate(request)
    (image,) = placed_images(pipeline.models, request)
    assert (image.frame, image.strength) == (index, 0.5)
    cells = {0: 0}.get(index, (WIDTH // 32) * (HEIGHT // 32)) if revision != "2026-01" else 0
    assert [plan.appended_tokens for plan in plan_stages(pipeline.models, request)] == [cells // 4, cells]


@pytest.mark.parametrize(("revision", "frame"), [("newest", 17), ("newest", -18), ("2026-01", 3), ("2026-01", -4)])
def test_frames_outside_the_clip_are_refused(pipeline: Pipeline, revision: str, frame: int) -> None:
    request = request_for(images=(ImageCondition(picture(0), frame),), revision=REVISIONS[revision])
    with pytest.raises(SettingError, match="image frame") as caught:
        pipeline.validate(request)
    assert caught.value.value == frame


@pytest.mark.parametrize(
    ("preset", "revision", "frames", "appended"),
    [
        ("two-stage", "newest", (0, 0), 0),
        ("two-stage", "newest", (-1, 16), 2),
        ("two-stage", "1.0.0", (3, 8, 3), 3),
        ("two-stage", "2026-01", (1, -2), 0),
        ("keyframes", "newest", (0, -17), 2),
        ("keyframes", "newest", (0, 8, -1), 3),
        # That recipe counts the clip's frames and appends in every revision
        ("keyframes", "2026-01", (0, 16), 2),
    ],
)
def test_images_are_replaced_or_appended_as_the_recipe_and_the_revision_have_it(
    pipeline: Pipeline, preset: str, revision: str, frames: tuple[int, ...], appended: int
) -> None:
    """Several images may be for one frame."""
    images = tuple(ImageCondition(picture(n), frame) for n, frame in enumerate(frames))
    request = request_for(preset, images=images, revision=REVISIONS[revision])
    pipeline.validate(request)
    cells = (WIDTH // 32) * (HEIGHT // 32)
    tokens = [plan.appended_tokens for plan in plan_stages(pipeline.models, request)]
    assert tokens == [appended * cells // 4, appended * cells]


def test_of_two_images_on_the_first_frame_the_later_one_is_shown(pipeline: Pipeline, texts: Texts) -> None:
    def first(*images: ImageCondition) -> Tensor:
        return pipeline.denoise(request_for(steps=1, images=images), *texts).video

    one, other = ImageCondition(picture(0), 0, 0.5), ImageCondition(picture(1), -FRAMES, 0.9)
    torch.testing.assert_close(first(one, other), first(other), rtol=0, atol=1e-5)
    assert (first(other, one) - first(other)).abs().max() > 0.01


def test_a_keyframe_at_the_first_frame_spans_that_frame_alone(pipeline: Pipeline) -> None:
    """The recipe's own places: start and end in seconds of images at the frames 0 and 8 (docs/model.md 4.4)."""
    images = (ImageCondition(picture(0), 0), ImageCondition(picture(1), 8))
    for revision, length in (("newest", 1), ("1.0.0", 8)):
        request = request_for("keyframes", images=images, revision=REVISIONS[revision])
        plan = plan_stages(pipeline.models, request)[0]
        cells = plan.video.height * plan.video.width
        zeros = torch.zeros(1, plan.video.token_count, plan.video.channels)
        at = video_positions(plan.video, FPS, pipeline.models.scale)
        encoded = [condition.EncodedImage(zeros[:, :cells], image.frame, 1.0) for image in images]
        state = condition.apply_images(pipeline.models, request, plan, StreamState.start(zeros, at), encoded)
        seconds = state.positions[0, 0, plan.video.token_count :: cells]
        torch.testing.assert_close(seconds, torch.tensor([[0.0, 1.0], [8.0, 8.0 + length]]) / FPS)


@pytest.mark.parametrize("preset", ["two-stage", "hq", "distilled"])
def test_keyframe_tokens_are_gone_before_the_upsampler(pipeline: Pipeline, texts: Texts, preset: str) -> None:
    images = tuple(ImageCondition(picture(frame % 17), frame, 0.8) for frame in (0, 5, -1))
    request = request_for(preset, None if preset == "distilled" else 2, images=images)
    first, last = both_stages(pipeline, texts, request)
    channels = pipeline.models.latent_channels
    assert first.video.shape == (1, channels, 3, HEIGHT // 64, WIDTH // 64)
    assert last.video.shape == (1, channels, 3, HEIGHT // 32, WIDTH // 32)
    plain, plain_last = both_stages(pipeline, texts, replace(request, images=()))
    assert not torch.equal(first.video, plain.video) and not torch.equal(last.video, plain_last.video)


def test_every_stage_encodes_the_images_anew_at_its_size(
    pipeline: Pipeline, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = condition.condition_pixels

    def watched(image: Tensor, height: int, width: int, crf: int) -> Tensor:
        sizes.append((height, width))
        return original(image, height, width, crf)

    monkeypatch.setattr(condition, "condition_pixels", watched)
    images = (ImageCondition(picture(0)), ImageCondition(picture(1), -1))
    both_stages(pipeline, texts, request_for(images=images))
    half, full = (HEIGHT // 2, WIDTH // 2), (HEIGHT, WIDTH)
    assert sizes == [half, half, full, full]


def test_strength_0_at_the_first_frame_is_no_image(pipeline: Pipeline, texts: Texts) -> None:
    with_image = request_for(images=(ImageCondition(picture(0), 0, 0.0),))
    plain, other = pipeline.denoise(request_for(), *texts), pipeline.denoise(with_image, *texts)
    # Rounding: the noise levels are one for each token instead of one for all
    assert (plain.video - other.video).abs().max() < 1e-4


# A given sound


@pytest.fixture
def uses(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Component, Phase]]]:
    """Every component that is used, and when."""
    seen: list[tuple[Component, Phase]] = []
    manager = pipeline.residency
    assert isinstance(manager, DeviceManager)
    use = manager.use

    def watched(component: Component, phase: Phase, adapters: Any = None) -> Any:
        seen.append((component, phase))
        return use(component, phase, adapters)

    monkeypatch.setattr(manager, "use", watched)
    yield seen


@pytest.mark.parametrize("preset", ["two-stage", "hq", "distilled"])
def test_a_given_sound_stays_as_it_is_through_both_stages(
    pipeline: Pipeline, texts: Texts, preset: str, uses: list[tuple[Component, Phase]]
) -> None:
    steps = None if preset == "distilled" else 2
    request = request_for(preset, steps, audio=sound(2.0))
    first, last = both_stages(pipeline, texts, request)
    assert first.audio.shape == tuple(pipeline.models.audio_geometry.latent(FRAMES / FPS))
    assert torch.equal(first.audio, last.audio)
    assert [c for c, _ in uses].count(Component.AUDIO_ENCODER) == 1, "stage 2 takes what stage 1 encoded"
    other, _ = both_stages(pipeline, texts, replace(request, audio=sound(2.0, seed=1)))
    assert not torch.equal(first.video, other.video), "the picture hears it"
    plain, _ = both_stages(pipeline, texts, request_for(preset, steps))
    assert not torch.equal(first.audio, plain.audio)


class Asked:
    """A transformer's calls: the texts that each one was given, and its items."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Tensor, Tensor, tuple[BatchItem, ...]]] = []
        call = GraphedCalls.__call__

        def watched(graphed: Any, video: Any, audio: Any, items: Any, rule: Any) -> Any:
            self.calls.append((video.context, audio.context, tuple(items)))
            return call(graphed, video, audio, items, rule)

        monkeypatch.setattr(GraphedCalls, "__call__", watched)


@pytest.mark.parametrize("preset", ["two-stage", "hq", "one-stage", "keyframes"])
def test_a_given_sound_is_guided_by_nothing(
    pipeline: Pipeline, texts: Texts, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the positive prompt in every pass, and none of its blocks is perturbed (docs/model.md 8.3)."""
    positive, negative = texts
    assert negative is not None
    asked = Asked(monkeypatch)
    pipeline.denoise(request_for(preset, 1, audio=sound(1.0), width=64), *texts)
    for video, audio, items in asked.calls:
        assert torch.equal(video, torch.cat([positive.video, negative.video]))
        assert torch.equal(audio, torch.cat([positive.audio, positive.audio]))
        assert not any(item.perturbation.audio_stg_blocks for item in items)
        assert any(item.perturbation.video_stg_blocks for item in items) == (preset != "hq")
    asked.calls.clear()
    pipeline.denoise(request_for(preset, 1, width=64), *texts)
    assert all(torch.equal(audio, torch.cat([positive.audio, negative.audio])) for _, audio, _ in asked.calls)


def test_guidance_of_the_sound_alone_needs_no_negative_prompt_where_it_is_given(pipeline: Pipeline) -> None:
    choice = RecipeChoice("one-stage", 1, video=GuidanceChoice(cfg=1.0))
    request = replace(request_for("one-stage"), recipe=choice.recipe("2.3", 3))
    assert pipeline.encode_prompt(request)[1] is not None
    assert pipeline.encode_prompt(replace(request, audio=sound(1.0)))[1] is None


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_given_sound_takes_the_draws_of_a_made_one(pipeline: Pipeline, texts: Texts, revision: str) -> None:
    """The noise of the video in stage 2 comes after that of the sound in stage 1, whether it is used or not."""
    request = request_for("distilled", None, audio=sound(2.0), revision=REVISIONS[revision])
    first = pipeline.denoise(request, *texts)
    last = pipeline.refine(request, pipeline.upsample(first), texts[0])
    assert torch.equal(first.audio, last.audio) and last.video.isfinite().all()


def test_a_short_sound_goes_on_in_silence_and_a_long_one_is_cut(pipeline: Pipeline, texts: Texts) -> None:
    short = sound(0.4)
    silent = AudioClip(torch.cat([short.waveform, torch.zeros(1, 2, RATE)], dim=2), RATE)
    long = sound(3.0)
    cut = AudioClip(long.waveform[:, :, : round(FRAMES / FPS * RATE)], RATE)

    def latent(clip: AudioClip) -> Tensor:
        return pipeline.denoise(request_for(steps=1, audio=clip), *texts).audio

    assert torch.equal(latent(short), latent(silent))
    assert torch.equal(latent(long), latent(cut))
    assert not torch.equal(latent(short), latent(long))


def test_one_channel_counts_for_both_and_the_rate_is_changed(pipeline: Pipeline, texts: Texts) -> None:
    def latent(clip: AudioClip) -> Tensor:
        return pipeline.denoise(request_for(steps=1, audio=clip), *texts).audio

    mono = sound(1.0, channels=1)
    both = AudioClip(mono.waveform.expand(1, 2, -1), RATE)
    assert torch.equal(latent(mono), latent(both))
    seconds = torch.arange(48000, dtype=torch.float64) / 48000
    tone = torch.sin(2 * torch.pi * 500 * seconds).float()[None, None] * 0.5
    high, low = AudioClip(tone, 48000), AudioClip(tone[:, :, ::3], RATE)
    # The resampler's ripple, and its ends; the logarithm shows both in bands where nothing is
    assert (latent(high) - latent(low)).abs().mean() < 0.1 * latent(low).abs().mean()


@pytest.mark.parametrize(("frames", "fps"), [(9, 24.0), (17, 25.0), (25, 24.0), (33, 30.0), (1, 12.0), (9, 7.3)])
def test_picture_and_sound_are_as_long_as_the_frames(pipeline: Pipeline, texts: Texts, frames: int, fps: float) -> None:
    request = request_for(steps=1, audio=sound(0.3, rate=44100), frames=frames, fps=fps)
    pipeline.validate(request)
    first = pipeline.denoise(request, *texts)
    assert first.audio.shape[2] == round(frames / fps * 25)
    heard = pipeline.decode(replace(request, width=WIDTH // 2, height=HEIGHT // 2), first, NullSink())
    assert heard.waveform.shape == (1, 2, round(frames / fps * 44100)) and heard.sampling_rate == 44100
    plain = pipeline.denoise(replace(request, audio=None), *texts)
    assert plain.audio.shape == first.audio.shape


@pytest.mark.parametrize("frames", [0, 2, 8, 10, 16, 18])
def test_frame_counts_that_would_be_cut_are_refused(pipeline: Pipeline, frames: int) -> None:
    """Nothing is cut silently, so that picture and sound cannot end apart."""
    with pytest.raises(SettingError, match=rf"^frames = {frames}: must be .*8 \* n \+ 1"):
        pipeline.validate(request_for(frames=frames))


@pytest.mark.parametrize(
    ("preset", "given", "chosen", "effective"),
    [
        ("two-stage", False, None, "stage1"),
        ("two-stage", True, None, "input"),
        ("two-stage", True, "stage2", "stage2"),
        ("distilled", False, None, "stage2"),
        ("distilled", True, None, "input"),
        ("one-stage", False, None, "stage1"),
        ("hq", False, "stage2", "stage2"),
    ],
)
def test_whose_sound_the_clip_has(preset: str, given: bool, chosen: str | None, effective: str) -> None:
    request = request_for(
        preset,
        None,
        audio=sound(1.0) if given else None,
        audio_source=None if chosen is None else AudioSource(chosen),
    )
    assert request.effective_audio_source.value == effective


def test_the_given_sound_is_heard_without_the_vocoder_unless_a_stage_is_asked_for(
    pipeline: Pipeline, texts: Texts, uses: list[tuple[Component, Phase]]
) -> None:
    request = request_for("one-stage", 1, width=64, audio=sound(2.0))
    pair = pipeline.denoise(request, *texts)
    heard = pipeline.decode(request, pair, NullSink())
    assert request.audio is not None
    assert torch.equal(heard.waveform, request.audio.waveform[:, :, : round(FRAMES / FPS * RATE)])
    assert Component.VOCODER not in {component for component, _ in uses}
    decoded = pipeline.decode(replace(request, audio_source=AudioSource.STAGE_1), pair, NullSink())
    assert Component.VOCODER in {component for component, _ in uses}
    assert decoded.sampling_rate != RATE and decoded.waveform.std() > 1e-3


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        (AudioClip(torch.zeros(2, 2, 100), RATE), "one clip of one or two channels"),
        (AudioClip(torch.zeros(1, 6, 100), RATE), "one clip of one or two channels"),
        (AudioClip(torch.zeros(2, 100), RATE), "one clip of one or two channels"),
        (AudioClip(torch.zeros(1, 2, 0), RATE), "one clip of one or two channels"),
        (AudioClip(torch.zeros(1, 2, 100), 0), "must be a positive number"),
        (AudioClip(torch.full((1, 2, 100), torch.nan), RATE), "not finite"),
    ],
    ids=["batch", "surround", "no batch", "empty", "rate", "nan"],
)
def test_sounds_that_cannot_be_used_are_refused(pipeline: Pipeline, clip: AudioClip, problem: str) -> None:
    with pytest.raises(SettingError, match=problem) as caught:
        pipeline.validate(request_for(audio=clip))
    assert caught.value.setting.startswith("audio")
    with pytest.raises(SettingError, match="without a given sound"):
        pipeline.validate(request_for(audio_source=AudioSource.INPUT))


@pytest.mark.parametrize("rate", [1, 16000, 44101])
@pytest.mark.parametrize(("frames", "fps"), [(9, 24.0), (1, 60.0), (1, 32.0), (9, 7.3)])
def test_a_sound_of_any_rate_and_length_fills_its_latent(
    pipeline: Pipeline, frames: int, fps: float, rate: int
) -> None:
    shape = pipeline.models.audio_geometry.latent(frames / fps)
    for samples in (1, 3 * rate):
        clip = AudioClip(torch.full((1, 1, samples), 0.1), rate)
        latent = condition.encode_sound(pipeline.models, pipeline.residency, clip, shape, frames / fps)
        assert latent.shape == tuple(shape) and latent.isfinite().all()


def test_the_last_frame_of_a_sound_is_mirrored_at_the_clips_end(pipeline: Pipeline) -> None:
    """The last of ten latent frames sees 6,272 samples, and the clip has 6,102."""
    frames, fps = 9, 23.6
    shape, samples = pipeline.models.audio_geometry.latent(frames / fps), round(frames / fps * RATE)
    long = sound(3.0)
    mirrored = torch.cat([long.waveform[..., :samples], long.waveform[..., :samples].flip(2)[..., 1:513]], dim=2)

    def latent(waveform: Tensor, seconds: float) -> Tensor:
        clip = AudioClip(waveform, RATE)
        return condition.encode_sound(pipeline.models, pipeline.residency, clip, shape, seconds)

    expected = latent(mirrored, mirrored.shape[2] / RATE)
    found = latent(long.waveform, frames / fps)
    # float32 rounding: the same samples in a longer transform of frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - latent(long.waveform, 3.0)).abs().max() > 1e-5, "what follows the clip is not heard"


def test_what_happened_to_pictures_and_sound_is_in_the_report(pipeline: Pipeline, tmp_path: Path) -> None:
    seen = torch.full((8, 8, 4), 90, dtype=torch.uint8)
    seen[0, :, 3] = 0
    Image.fromarray(seen.numpy()).save(tmp_path / "clear.png")
    loud = AudioClip(torch.full((1, 2, 9000), 1.5), 48000, ("The sound x.wav has 2 damaged packets.",))
    images = (ImageCondition(tmp_path / "clear.png"),)
    request = request_for("one-stage", 1, width=64, frames=1, images=images, audio=loud)
    result = pipeline.run(request)
    notices = result.report.notices
    for words in ("clear.png is transparent", "2 damaged packets", "above full scale in 4000 samples"):
        assert [words in notice for notice in notices].count(True) == 1, words
    assert pipeline.last_report().notices[-1] == notices[-1]
    quiet = pipeline.run(replace(request, audio=None, images=()))
    assert not [notice for notice in quiet.report.notices if "sound" in notice or "picture" in notice]
    assert quiet.audio.waveform.shape[-1] == round(1 / FPS * quiet.audio.sampling_rate), "as long as the picture"
