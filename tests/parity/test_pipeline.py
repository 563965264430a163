"""Whole runs against a plain re-computation with diffusers' and transformers' modules, float32 on the CPU.

Every formula of a run is written out here from docs/model.md 2.7, 2.8, 3.1, 4 to 6, 8.1, 8.3, 9.2, one pass after
the other; of our sampling and stages nothing is imported. The models are those of diffusers, so that a run agrees only
if weights, rules, formulas, their order and the random draws all do.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("diffusers")
from diffusers_models import Generation, OfficialModels, State, replaced, transformer_key
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.recipes import REVISIONS, Revision, official_recipe
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.types import AudioClip, ImageCondition
from transformers import Gemma3TextConfig, PreTrainedTokenizerFast
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextModel

# Largest absolute difference that is let through, by the end of a tensor's name, and the largest one measured over all
# cases. Contexts and latents have a standard deviation of 0.6 to 1.5, the waveform one of 0.15. A rule of another
# revision shows from 7e-3 on, another estimator of the rescale's standard deviation from 6e-3 on in stage 1.
TOLERANCES: Mapping[str, float] = {
    "_context": 1e-4,  # 3.1e-5: Gemma runs the real tokens alone, and rotary angles round otherwise there
    "_sigmas": 5e-7,  # 0
    "stage1_video": 4e-5,  # 9.5e-6
    "stage1_audio": 4e-5,  # 1.2e-5
    "upsampled_video": 1e-5,  # 3.0e-6
    "stage2_video": 1e-5,  # 1.7e-6
    "stage2_audio": 1e-5,  # 2.0e-6
    "_waveform": 2e-5,  # 6.0e-6
}
PIXEL_TOLERANCE = 2e-3  # of 255; 3.7e-4

WIDTH, HEIGHT, FRAMES, FPS, SEED, STEPS = 192, 128, 17, 24.0, 7, 4
PROMPT = "A street musician plays the violin in the rain while people with umbrellas walk past; distant thunder."
NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"
# Of the tiny models
VIDEO_CHANNELS, AUDIO_CHANNELS, AUDIO_BINS = 16, 2, 16
STG_BLOCK = 1  # of three: where the official block is among 48
SOUND_RATE, HOP, WINDOW, MEL_BANDS = 16000, 160, 1024, 64

# (cfg, stg, modality, rescale) of video and audio in stage 1 (docs/model.md 6)
GUIDED = ((3.0, 1.0, 3.0, 0.7), (7.0, 1.0, 3.0, 0.7))
GUIDANCE = {
    "two-stage": GUIDED,
    "one-stage": GUIDED,
    "hq": ((3.0, 0.0, 3.0, 0.45), (7.0, 0.0, 3.0, 1.0)),
    "keyframes": GUIDED,
}
DISTILLED_STRENGTHS = {
    "two-stage": (0.0, 1.0),
    "hq": (0.25, 0.5),
    "keyframes": (0.0, 1.0),
}  # of the LoRA, in stage 1 and 2

STAGE_2 = (0.909375, 0.725, 0.421875, 0.0)
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)


class Rules(NamedTuple):
    """What one official revision does (docs/model.md 0)."""

    cross: Literal["own", "other", "split"]  # noise levels of the audio-video cross attention
    bf16_positions: bool
    keeps_upscaled: bool  # partial strength in stage 2 keeps part of the upscaled latent
    keyframe_frames: int  # pixel frames that a one-frame keyframe spans
    audio_stage: int  # whose sound is decoded
    replaces_latent_frames: bool = False  # an image at frame n replaces latent frame n
    frozen_sigma: bool = False  # a given sound reports the common noise level, not 0


RULES: Mapping[str, Rules] = {
    "newest": Rules("split", False, True, 1, 1),
    "1.0.0": Rules("other", True, False, 8, 2, frozen_sigma=True),
    "2026-01": Rules("own", True, False, 8, 2, replaces_latent_frames=True, frozen_sigma=True),
    "mixed": Rules("other", False, False, 1, 2, frozen_sigma=True),
}
MIXED = replace(REVISIONS["1.0.0"], name="mixed", bf16_video_positions=False, single_frame_keyframes=True)


class StillImage(NamedTuple):
    frame: int
    strength: float

    def index(self, in_latent: bool) -> int:
        """Counted from the first frame, of the clip or of its latent; -1 is the last one."""
        return self.frame % (((FRAMES - 1) // 8 + 1) if in_latent else FRAMES)


class UserLoRA(NamedTuple):
    strength: float
    stage: Literal["1", "2", "both"]

    def strength_in(self, stage: int) -> float:
        return self.strength if self.stage in (str(stage), "both") else 0.0


NO_LORA = UserLoRA(0.0, "both")


@dataclass(frozen=True)
class Case:
    generation: Generation
    revision: Revision = REVISIONS["newest"]
    recipe: str = "two-stage"
    images: tuple[StillImage, ...] = ()
    lora: UserLoRA = NO_LORA
    sound: float = 0.0  # seconds of a given one
    sampler: str = ""  # in place of the recipe's
    mode: str = "original"  # of the device manager; the result must not depend on it

    @property
    def rules(self) -> Rules:
        return RULES[self.revision.name]


CASES = {
    "2.3": Case("2.3", lora=UserLoRA(0.6, "both"), mode="snapshot-low"),
    "2.3 of 1.0.0": Case("2.3", REVISIONS["1.0.0"], mode="resident"),
    "2.3 of 2026-01": Case("2.3", REVISIONS["2026-01"], lora=UserLoRA(-0.4, "2")),
    "2.0": Case("2.0", lora=UserLoRA(0.8, "1"), mode="snapshot"),
    "2.3, images": Case("2.3", images=(StillImage(0, 0.7), StillImage(8, 0.8))),
    "2.3 of 1.0.0, images": Case("2.3", REVISIONS["1.0.0"], images=(StillImage(0, 1.0), StillImage(8, 1.0))),
    "2.3 mixed, images": Case("2.3", MIXED, images=(StillImage(0, 0.7), StillImage(8, 0.8))),
    "2.0 of 2026-01, images": Case("2.0", REVISIONS["2026-01"], images=(StillImage(0, 1.0), StillImage(1, 0.6))),
    "2.3 distilled, two images on the first frame": Case(
        "2.3", recipe="distilled", images=(StillImage(0, 0.5), StillImage(-17, 1.0))
    ),
    "2.3 HQ, images": Case("2.3", recipe="hq", images=(StillImage(0, 0.7), StillImage(8, 1.0)), mode="snapshot-low"),
    "2.0 HQ": Case("2.0", REVISIONS["1.0.0"], recipe="hq", lora=UserLoRA(0.5, "both")),
    "2.3 one stage": Case("2.3", recipe="one-stage"),
    "2.0 of 1.0.0, one stage": Case("2.0", REVISIONS["1.0.0"], recipe="one-stage"),
    "2.3, last frame": Case("2.3", images=(StillImage(-1, 0.9),)),
    "2.0 of 2026-01, last frame": Case("2.0", REVISIONS["2026-01"], images=(StillImage(-1, 1.0),)),
    "2.3, short sound": Case("2.3", sound=0.4, mode="resident"),
    "2.3 of 1.0.0, sound": Case("2.3", REVISIONS["1.0.0"], sound=1.0),
    "2.0 of 2026-01, sound": Case("2.0", REVISIONS["2026-01"], sound=1.0),
    "2.3 HQ, sound and image": Case("2.3", recipe="hq", images=(StillImage(0, 1.0),), sound=1.0),
    "2.3 distilled, sound": Case("2.3", recipe="distilled", sound=1.0),
    "2.0 one stage, sound": Case("2.0", recipe="one-stage", sound=0.7),
    "2.3 keyframes of 1.0.0, two on one frame": Case(
        "2.3",
        REVISIONS["1.0.0"],
        recipe="keyframes",
        images=(StillImage(0, 0.9), StillImage(8, 1.0), StillImage(-9, 0.6)),
    ),
    "2.3 gradient estimation": Case("2.3", sampler="gradient_estimation"),
    "2.0 gradient estimation, image": Case(
        "2.0", recipe="one-stage", images=(StillImage(0, 0.7),), sampler="gradient_estimation"
    ),
}


# --- the run as it should be ---


@dataclass(frozen=True)
class Oracle:
    """Models and files of one generation."""

    files: TinyFiles
    user_lora: Path
    models: OfficialModels
    contexts: Callable[[str], tuple[Tensor, Tensor]]


def expected_run(case: Case, oracle: Oracle) -> dict[str, Tensor]:
    """Every tensor that a run keeps, and ``pixels`` (f, H, W, 3) from 0 to 255, not yet cut to bytes."""
    models, generator = oracle.models, torch.Generator().manual_seed(SEED)
    stages = 1 if case.recipe == "one-stage" else 2
    positive = oracle.contexts(PROMPT)
    negative = oracle.contexts(NEGATIVE) if case.recipe in GUIDANCE else None
    size = (HEIGHT // stages, WIDTH // stages)
    if negative is None:
        sigmas = torch.tensor(DISTILLED)
    else:
        sigmas = stage_1_sigmas(STEPS, math.prod(grid_of(size)) if case.recipe == "hq" else 4096)
    distilled = DISTILLED_STRENGTHS.get(case.recipe, (0.0, 0.0))

    dit = merged(oracle, distilled[0], case.lora.strength_in(1))
    video, audio = denoise(case, models, dit, size, sigmas, positive, negative, generator, None)
    sound = audio
    out = {
        "video_context": positive[0],
        "audio_context": positive[1],
        "stage1_sigmas": sigmas,
        "stage1_video": video,
        "stage1_audio": audio,
    }
    if negative is not None:
        out |= {"negative_video_context": negative[0], "negative_audio_context": negative[1]}
    if stages == 2:
        upsampled = normalised(models, models.upsampler(raw(models, video)))
        dit = merged(oracle, distilled[1], case.lora.strength_in(2))
        start, sigmas = (upsampled, audio), torch.tensor(STAGE_2)
        video, audio = denoise(case, models, dit, (HEIGHT, WIDTH), sigmas, positive, None, generator, start)
        out |= {"upsampled_video": upsampled, "stage2_video": video, "stage2_audio": audio}
        if case.rules.audio_stage == 2 or case.recipe in ("distilled", "keyframes"):
            sound = audio
    pixels = models.video_vae.decode(raw(models, video)).sample[0].permute(1, 2, 3, 0)  # CFHW -> FHWC
    if case.sound:
        samples = given_sound(case.sound)[:, :, : round(FRAMES / FPS * SOUND_RATE)]
        heard = F.pad(samples, (0, round(FRAMES / FPS * SOUND_RATE) - samples.shape[2]))
    else:
        heard = waveform(models, sound)
    return {**out, "audio_waveform": heard, "pixels": ((pixels + 1) / 2).clamp(0, 1) * 255}


def stage_1_sigmas(steps: int, tokens: int) -> Tensor:
    """docs/model.md 5.1; the shift is made for 4096 tokens whatever the clip has, in all recipes but HQ."""
    m = (2.05 - 0.95) / (4096 - 1024)
    mu = tokens * m + (0.95 - 1024 * m)
    u = 1 - torch.arange(steps) / steps
    s = math.exp(mu) / (math.exp(mu) + (1 / u - 1))
    z = 1 - s
    return torch.cat((1 - z / (z[-1] / (1 - 0.1)), torch.zeros(1)))


def grid_of(size: tuple[int, int]) -> tuple[int, int, int]:
    """Latent frames, rows and columns."""
    return (FRAMES - 1) // 8 + 1, size[0] // 32, size[1] // 32


def merged(oracle: Oracle, distilled: float, user: float) -> nn.Module:
    """The DiT with LoRAs of these strengths in its weights: W + strength * alpha / rank * up @ down."""
    weights = dict(oracle.models.weights)
    for path, strength in ((oracle.files.distilled_lora, distilled), (oracle.user_lora, user)):
        names = (("diffusion_model.", ""), ("lora_down", "lora_A"), ("lora_up", "lora_B"))
        lora = {replaced(key, names): tensor for key, tensor in load_file(path).items()}
        for module in {key.rpartition(".lora_A.")[0] for key in lora if ".lora_A." in key}:
            down, up = (lora[f"{module}.lora_{end}.weight"] for end in "AB")
            scale = float(lora.get(f"{module}.alpha", len(down))) / len(down)
            target = f"{transformer_key(module)}.weight"
            weights[target] = weights[target] + strength * scale * (up @ down)
    dit = oracle.models.new_transformer()
    dit.load_state_dict(weights, strict=True, assign=True)
    return dit


class Tokens(NamedTuple):
    """Both streams on their way; ``mask`` is 1 where a token is free and 0 where it is given."""

    video: Tensor
    audio: Tensor
    clean: Tensor
    mask: Tensor
    positions: Tensor
    given_audio: Tensor | None  # the audio as it stays


Evaluate = Callable[[Tokens, float], tuple[Tensor, Tensor]]


def denoise(
    case: Case,
    models: OfficialModels,
    dit: nn.Module,
    size: tuple[int, int],
    sigmas: Tensor,
    positive: tuple[Tensor, Tensor],
    negative: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
    start: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """One stage: video (1, C, F, H, W) and audio (1, C, T, mel bins). ``negative`` is given where it is guided."""
    grid, levels = grid_of(size), sigmas.tolist()
    state = initial(case, models, dit, size, grid, levels[0], generator, start)

    def evaluate(state: Tokens, sigma: float) -> tuple[Tensor, Tensor]:
        def run(text: tuple[Tensor, Tensor], **perturbed: Any) -> tuple[Tensor, Tensor]:
            return estimate(dit, case.rules, state, sigma, text, **perturbed)

        x0 = run(positive)
        if negative is not None:
            scales, free = GUIDANCE[case.recipe], state.given_audio is None
            # A given sound is not guided (8.3): it keeps the positive text, and no block of it is perturbed
            uncond = run(negative if free else (negative[0], positive[1]))
            with contextlib.nullcontext() if free else unperturbed_audio(dit):
                perturbed = run(positive, spatio_temporal_guidance_blocks=[STG_BLOCK]) if scales[0][1] else x0
            isolated = run(positive, isolate_modalities=True)
            video, audio = zip(x0, uncond, perturbed, isolated, strict=True)
            x0 = guided(scales[0], *video), guided(scales[1], *audio)
        audio = x0[1] if state.given_audio is None else state.given_audio
        return x0[0] * state.mask + state.clean * (1 - state.mask), audio

    loop = {"hq": res_2s}.get(case.recipe, euler) if not case.sampler else gradient_estimation
    state = loop(evaluate, state, levels)
    video = state.video[:, : math.prod(grid)].transpose(1, 2).unflatten(2, grid)
    return video, state.audio.unflatten(2, (AUDIO_CHANNELS, AUDIO_BINS)).transpose(1, 2)


def euler(evaluate: Evaluate, state: Tokens, levels: Sequence[float]) -> Tokens:
    for s, n in pairwise(levels):
        video, audio = evaluate(state, s)
        state = state._replace(
            video=state.video + (state.video - video) / s * (n - s),
            audio=state.audio + (state.audio - audio) / s * (n - s),
        )
    return state


def gradient_estimation(evaluate: Evaluate, state: Tokens, levels: Sequence[float]) -> Tokens:
    """docs/model.md 5.3 with gamma 2."""
    before: list[Tensor] = []
    for s, n in pairwise(levels):
        x, x0 = (state.video, state.audio), evaluate(state, s)
        if n > 0:
            v = [(x[i] - x0[i]) / s for i in range(2)]
            total = [2 * (v[i] - before[i]) + before[i] for i in range(2)] if before else v
            before, x0 = v, (x[0] + total[0] * (n - s), x[1] + total[1] * (n - s))
        state = state._replace(video=x0[0], audio=x0[1])
    return state


def res_2s(evaluate: Evaluate, state: Tokens, levels: Sequence[float]) -> Tokens:
    """docs/model.md 5.4, its loop of a hundred rounds included; float64 between the evaluations."""
    free = state.given_audio is None
    masks = (state.mask.double(), torch.full((1, 1, 1), float(free)).double())
    cleans = (state.clean.double(), (torch.zeros(1, 1, 1) if free else state.given_audio).double())
    step_noise, substep_noise = torch.Generator().manual_seed(-1), torch.Generator().manual_seed(9999)
    for s, n in pairwise((*levels[:-1], 0.0011)):
        h, q = math.log(s / n), math.sqrt(s * n)
        b2 = 2 * ((math.exp(-h) - 1 + h) / h**2)
        b1 = (math.exp(-h) - 1) / -h - b2
        a21 = (math.exp(-h / 2) - 1) / (-h / 2) / 2
        anchors, first, middles = [state.video.double(), state.audio.double()], evaluate(state, s), []
        for i in range(2):
            e1 = first[i].double() - anchors[i]
            middle = injected(anchors[i], anchors[i] + h * a21 * e1, s, q, substep_noise)
            middle = middle * masks[i] + cleans[i] * (1 - masks[i])
            if h < 0.5 and s > 0.03:
                for _ in range(100):
                    anchors[i] = middle - h * a21 * e1
                    e1 = first[i].double() - anchors[i]
            middles.append(middle.float())
        second, ends = evaluate(state._replace(video=middles[0], audio=middles[1]), q), []
        for i in range(2):
            e1, e2 = (estimates[i].double() - anchors[i] for estimates in (first, second))
            end = injected(anchors[i], anchors[i] + h * (b1 * e1 + b2 * e2), s, n, step_noise)
            ends.append((end * masks[i] + cleans[i] * (1 - masks[i])).float())
        state = state._replace(video=ends[0], audio=ends[1])
    video, audio = evaluate(state, 0.0011)
    return state._replace(video=video, audio=audio)


def injected(anchor: Tensor, target: Tensor, s: float, n: float, generator: torch.Generator) -> Tensor:
    """SDE(A, Y, s, n, w) of docs/model.md 5.4."""
    w = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    w = (w - w.mean()) / w.std()
    up = 0.5 * n
    r = math.sqrt(n**2 - up**2)
    alpha = (1 - n) + r
    eps = (anchor - target) / (s - n)
    return alpha * (anchor - s * eps + r / alpha * eps) + up * w


def initial(
    case: Case,
    models: OfficialModels,
    dit: nn.Module,
    size: tuple[int, int],
    grid: tuple[int, int, int],
    level: float,
    generator: torch.Generator,
    start: tuple[Tensor, Tensor] | None,
) -> Tokens:
    """The tokens at the first noise level, with every image in them (4.2 to 4.5)."""
    rules, cells, audio_frames = case.rules, grid[1] * grid[2], round(FRAMES / FPS * 25)
    if start is None:
        video = torch.zeros(1, math.prod(grid), VIDEO_CHANNELS)
        audio = torch.zeros(1, audio_frames, AUDIO_CHANNELS * AUDIO_BINS)
    else:
        video = start[0].flatten(2).transpose(1, 2)
        audio = start[1].transpose(1, 2).flatten(2)
    positions = dit.rope.prepare_video_coords(1, *grid, "cpu", fps=FPS)
    if rules.bf16_positions:
        positions = positions.bfloat16()
    clean, mask = video.clone(), torch.ones(1, video.shape[1], 1)
    in_latent = rules.replaces_latent_frames and case.recipe != "keyframes"
    for image in case.images:
        tokens, frame = image_tokens(models, picture(image.frame), size), image.index(in_latent)
        if in_latent or (frame == 0 and case.recipe != "keyframes"):
            span = slice(frame * cells, (frame + 1) * cells)
            clean[:, span], mask[:, span] = tokens, 1 - image.strength
        else:
            place = dit.rope.prepare_video_coords(1, 1, *grid[1:], "cpu", fps=FPS)
            place[:, 0, :, 0] = frame / FPS
            # The first latent frame of a clip spans one frame, so that a keyframe there does in every revision
            place[:, 0, :, 1] = (frame + (rules.keyframe_frames if frame else 1)) / FPS
            positions = torch.cat((positions.float(), place), dim=2)
            video = torch.cat((video, torch.zeros_like(tokens)), dim=1)
            clean = torch.cat((clean, tokens), dim=1)
            mask = torch.cat((mask, torch.full((1, cells, 1), 1 - image.strength)), dim=1)

    noise, audio_noise = (
        torch.randn(like.shape, generator=generator, dtype=torch.bfloat16).float() for like in (video, audio)
    )
    if rules.keeps_upscaled:
        video = (1 - mask) * clean + mask * ((1 - level) * video + level * noise)
    else:
        video = noise * (mask * level) + clean * (1 - mask * level)
    if case.sound:
        given = sound_tokens(models, given_sound(case.sound), audio_frames)
        return Tokens(video, given, clean, mask, positions, given)
    return Tokens(video, audio_noise * level + audio * (1 - level), clean, mask, positions, None)


def estimate(
    dit: nn.Module, rules: Rules, state: Tokens, sigma: float, text: tuple[Tensor, Tensor], **perturbed: Any
) -> tuple[Tensor, Tensor]:
    """Clean estimates of both streams from one evaluation: x - mask * sigma * v."""
    scalar = torch.tensor([sigma]) * 1000
    free = float(state.given_audio is None)
    audio_scalar = scalar if rules.frozen_sigma else scalar * free
    with gates_at(dit, (audio_scalar, scalar) if rules.cross == "split" else None):
        v, v_audio = dit(
            hidden_states=state.video,
            audio_hidden_states=state.audio,
            encoder_hidden_states=text[0],
            audio_encoder_hidden_states=text[1],
            timestep=state.mask[..., 0] * sigma * 1000,
            audio_timestep=(scalar * free).expand(1, state.audio.shape[1]),
            sigma=scalar,
            audio_sigma=audio_scalar,
            audio_num_frames=state.audio.shape[1],
            video_coords=state.positions,
            use_cross_timestep=rules.cross == "other",
            return_dict=False,
            **perturbed,
        )
    return state.video - state.mask * sigma * v, state.audio - sigma * v_audio


@contextmanager
def gates_at(dit: nn.Module, levels: tuple[Tensor, Tensor] | None) -> Iterator[None]:
    """The newest cross rule, which diffusers has no flag for: on top of "own", the gates take the other stream's
    scalar noise level, the audio's at the video's gate and the video's at the audio's. None leaves them alone."""

    def at(level: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, arguments: (level, *arguments[1:])

    gates = (dit.av_cross_attn_video_a2v_gate, dit.av_cross_attn_audio_v2a_gate)
    handles = [
        gate.register_forward_pre_hook(at(level)) for gate, level in zip(gates, levels or (), strict=levels is not None)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unperturbed_audio(dit: nn.Module) -> Iterator[None]:
    """STG that leaves the audio alone, which diffusers has no flag for: its blocks hear of no perturbation."""

    def plain(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**options, "perturbation_mask": None, "all_perturbed": False}

    handles = [block.audio_attn1.register_forward_pre_hook(plain, with_kwargs=True) for block in dit.transformer_blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def guided(scales: tuple[float, float, float, float], c: Tensor, u: Tensor, p: Tensor, i: Tensor) -> Tensor:
    """docs/model.md 6, from the conditional, unconditional, perturbed and isolated estimates."""
    cfg, stg, modality, rescale = scales
    g = c + (cfg - 1) * (c - u) + stg * (c - p) + (modality - 1) * (c - i)
    return g * (rescale * c.std() / g.std() + (1 - rescale))


def picture(seed: int) -> Tensor:
    """An image of another aspect ratio than the clip's, uint8 (H, W, 3)."""
    noise = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed % 100))
    smooth = F.interpolate(noise, (150, 170), mode="bilinear")[0]
    return (smooth * 60 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def image_tokens(models: OfficialModels, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resized to cover the clip, cut out in the middle, encoded as one latent frame (4.6)."""
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    covering = [math.ceil(length * scale) for length in image.shape[:2]]
    pixels = F.interpolate(image.permute(2, 0, 1)[None].float(), covering, mode="bilinear", align_corners=False)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    pixels = pixels[:, :, top : top + size[0], left : left + size[1]] / 127.5 - 1
    latent = models.video_vae.encode(pixels[:, :, None]).latent_dist.mode()
    return normalised(models, latent).flatten(2).transpose(1, 2)


def given_sound(seconds: float) -> Tensor:
    """Two sweeps from 200 to about 3000 Hz, one on each side, (1, 2, N).

    With noise in all bands: the logarithm of an empty one would show the rounding of the transform alone.
    """
    t = torch.arange(round(seconds * SOUND_RATE), dtype=torch.float64) / SOUND_RATE
    sides = [torch.sin(2 * math.pi * (200 + 1400 * t) * t + phase) * 0.4 for phase in (0.0, 1.0)]
    noise = torch.randn(2, len(t), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (torch.stack(sides) + 0.05 * noise)[None].float()


def sound_tokens(models: OfficialModels, sound: Tensor, frames: int) -> Tensor:
    """The sound as long as the clip, as the tokens of so many latent frames (4.7, 7.2, 8.3)."""
    needed = round(FRAMES / FPS * SOUND_RATE)
    sound = F.pad(sound[:, :, :needed], (0, max(0, needed - sound.shape[2])))[0].double()
    sound = F.pad(sound, (WINDOW // 2, WINDOW // 2), mode="reflect")
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(WINDOW, dtype=torch.float64) / WINDOW)
    spectrum = torch.fft.rfft(sound.unfold(-1, WINDOW, HOP) * hann).abs()
    mel = (spectrum @ slaney_bank(MEL_BANDS).T).clamp(min=1e-5).log().float()
    latent = models.audio_vae.encode(mel[None]).latent_dist.mode()[:, :, :frames]
    tokens: Tensor = latent.transpose(1, 2).flatten(2)
    return (tokens - models.audio_vae.latents_mean) / models.audio_vae.latents_std


def slaney_bank(bands: int) -> Tensor:
    """Triangles of unit area on Slaney's mel scale from 0 to 8000 Hz, (bands, bins)."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * math.log(8) / math.log(6.4)
    edges = [hertz(top * i / (bands + 1)) for i in range(bands + 2)]
    rows = []
    for left, peak, right in zip(edges, edges[1:], edges[2:], strict=False):
        f = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * SOUND_RATE / WINDOW
        triangle = torch.minimum((f - left) / (peak - left), (right - f) / (right - peak)).clamp(min=0)
        rows.append(triangle * 2 / (right - left))
    return torch.stack(rows)


def normalised(models: OfficialModels, latent: Tensor) -> Tensor:
    vae = models.video_vae
    return (latent - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)


def raw(models: OfficialModels, latent: Tensor) -> Tensor:
    vae = models.video_vae
    return latent * vae.latents_std.view(1, -1, 1, 1, 1) + vae.latents_mean.view(1, -1, 1, 1, 1)


def waveform(models: OfficialModels, latent: Tensor) -> Tensor:
    tokens = latent.transpose(1, 2).flatten(2) * models.audio_vae.latents_std + models.audio_vae.latents_mean
    mel = models.audio_vae.decode(tokens.unflatten(2, (AUDIO_CHANNELS, AUDIO_BINS)).transpose(1, 2)).sample
    sound: Tensor = models.vocoder(mel)
    return sound


def text_encoder(folder: Path, models: OfficialModels) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Contexts of a prompt, from the 1024 tokens of a left-padded row (3.1)."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", bos_token="<bos>", padding_side="left"
    )
    config = Gemma3TextConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"])
    gemma = Gemma3TextModel(config).eval()
    weights: State = {}
    for file in folder.glob("*.safetensors"):
        weights |= {key.removeprefix("language_model.model."): tensor for key, tensor in load_file(file).items()}
    gemma.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=True)
    known: dict[str, tuple[Tensor, Tensor]] = {}

    def contexts(prompt: str) -> tuple[Tensor, Tensor]:
        if prompt not in known:
            row = tokenizer(prompt.strip(), padding="max_length", max_length=1024, truncation=True, return_tensors="pt")
            states = gemma(row["input_ids"], attention_mask=row["attention_mask"], output_hidden_states=True)
            stacked = torch.stack(states.hidden_states, dim=-1)
            video, audio, _ = models.connectors(stacked, row["attention_mask"])
            known[prompt] = (video, audio)
        return known[prompt]

    return contexts


# --- ours ---


def our_run(case: Case, oracle: Oracle) -> dict[str, Tensor]:
    files = oracle.files
    loras = (LoRASource(oracle.user_lora, *case.lora),) if case.lora.strength else ()
    models = ModelSet.open(
        ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora, loras), torch.float32
    )
    recipe = official_recipe(case.recipe, models.generation, models.num_layers)
    recipe = replace(recipe, sampler=case.sampler or recipe.sampler)
    request = GenerationRequest(
        prompt=PROMPT,
        recipe=recipe if recipe.sigmas else replace(recipe, steps=STEPS),
        negative_prompt=NEGATIVE if case.recipe in GUIDANCE else "",
        width=WIDTH,
        height=HEIGHT,
        frames=FRAMES,
        fps=FPS,
        seed=SEED,
        images=tuple(ImageCondition(picture(image.frame), *image) for image in case.images),
        audio=AudioClip(given_sound(case.sound), SOUND_RATE) if case.sound else None,
        image_crf=0,
        revision=case.revision,
    )
    pipeline = Pipeline(models, open_manager(models, torch.device("cpu"), case.mode))
    return pipeline.run(request, keep_latents=True).latents


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Generation], Oracle]:
    made: dict[Generation, Oracle] = {}

    def oracle(generation: Generation) -> Oracle:
        if generation not in made:
            folder = tmp_path_factory.mktemp("tiny")
            files = write_tiny(folder, generation, dtype="float32")
            models = OfficialModels.load(files.checkpoint, files.upsampler, generation)
            user_lora = write_community_lora(files.lora, folder / "community.safetensors")
            made[generation] = Oracle(files, user_lora, models, text_encoder(files.gemma, models))
        return made[generation]

    return oracle


def write_community_lora(official: Path, path: Path) -> Path:
    """The same LoRA in the community's format, with an alpha that differs from layer to layer."""
    tensors: State = {}
    for number, (key, tensor) in enumerate(sorted(load_file(official).items())):
        tensors[key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = tensor
        if key.endswith("lora_A.weight"):
            tensors[key.replace("lora_A.weight", "alpha")] = torch.tensor(len(tensor) * (0.5 + number % 3 / 4))
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_run(name: str, oracles: Callable[[Generation], Oracle]) -> None:
    case = CASES[name]
    oracle = oracles(case.generation)
    ours, expected = our_run(case, oracle), expected_run(case, oracle)
    frames, pixels = ours.pop("frames"), expected.pop("pixels")
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensor.std() > 0.1, key  # a degenerate tensor would agree with anything
        (tolerance,) = (value for end, value in TOLERANCES.items() if key.endswith(end))
        torch.testing.assert_close(
            ours[key], tensor, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
    # Bytes are cut off, not rounded: a pixel lies in [byte, byte + 1)
    rest = pixels - frames
    assert rest.min() >= -PIXEL_TOLERANCE and rest.max() <= 1 + PIXEL_TOLERANCE
    assert 0.4 < rest.mean() < 0.6 and pixels.std() > 30
