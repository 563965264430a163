"""``ltx2 bench peers``: DiT and video decoder beside diffusers' and ltx-core's, in turns, with the same weights."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.types import Component, PromptContext, VideoSize
from . import ceilings
from .dit import USUAL, counted, described
from .measure import (
    JSON,
    Action,
    Deadline,
    Samples,
    Save,
    Timer,
    in_turns,
    installed_version,
    machine,
    release,
    timer_for,
    with_kernels,
)
from .shapes import SIGMA, Inputs, Shape
from .synthetic_models import SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

OURS, OURS_EAGER = "ours", "ours eager"
COMPILED, CAPTURED = "compiled", "captured"
PEERS: Mapping[str, tuple[str, str]] = {  # the package that each needs, and how it runs
    "diffusers": ("diffusers", ""),
    "diffusers compiled": ("diffusers", COMPILED),
    "ltx-core": ("ltx_core", ""),
    "ltx-core compiled": ("ltx_core", COMPILED),
    "ltx-core captured": ("ltx_core", CAPTURED),
}
CONTESTANTS = (OURS, OURS_EAGER, *PEERS)
DECODED = VideoSize(121, 512, 768)
# A compiled block for each shape; dynamo would give up after eight
MOST_COMPILED = 64


class Batch(NamedTuple):
    """A shape's passes as one plain batch."""

    video: Tensor  # (B, T, C)
    audio: Tensor
    prompts: PromptContext  # (B, S, D) each
    positions: tuple[Tensor, Tensor]  # (B, axes, T, 2)
    sigma: Tensor  # (B,)

    @classmethod
    def of(cls, models: SyntheticModels, shape: Shape, inputs: Inputs) -> Batch:
        """The conditional pass comes first. Nothing is perturbed or isolated: peers would compute no less for it."""
        read = [
            inputs.prompts[call.prompts.start + item.context] for call in shape.calls(models) for item in call.items
        ]
        count = len(read)
        return cls(
            inputs.video.repeat(count, 1, 1),
            inputs.audio.repeat(count, 1, 1),
            PromptContext(torch.cat([p.video for p in read]), torch.cat([p.audio for p in read])),
            (inputs.positions[0].repeat(count, 1, 1, 1), inputs.positions[1].repeat(count, 1, 1, 1)),
            torch.full((count,), SIGMA, device=inputs.video.device),
        )


@dataclass(frozen=True)
class PeersBenchmark:
    """What is measured.

    Attributes:
        contestants: some of :data:`CONTESTANTS`; what is not installed is left out.
        decoded: a clip that the video autoencoders decode; None: they do not.
    """

    models: SyntheticModels
    shapes: Sequence[Shape]
    contestants: Sequence[str] = CONTESTANTS
    decoded: VideoSize | None = DECODED
    repeat: int = 5
    limit_s: float | None = None

    def run(self, save: Save, device: torch.device | None = None, timer: Timer | None = None) -> JSON:
        """The machine's ceilings, then every shape; ``save`` takes the figures after each row."""
        device = device or torch.device("cuda")
        timer, deadline = timer or timer_for(device), Deadline(self.limit_s)
        figures: JSON = {"benchmark": "peers", "machine": machine(device)}
        figures["versions"] = {name: installed_version(name) for name in ("diffusers", "ltx-core")}
        if device.type == "cuda":
            figures["ceilings"] = ceilings.run(lambda _: None)
        rates = ceilings.matmul_rates(device)
        figures.update(matmul=rates.summary(), rows=[], left_out=[])
        if self.decoded is not None and _installed("diffusers"):
            figures["video"] = self._decode(self.decoded, device, timer, deadline)
            save(figures)
        ours = self.models.filled_transformer(device)
        peers = self._peers(ours.state_dict())
        for shape in self.shapes:
            expected = USUAL * rates.floor_ms(counted(self.models, shape), "bf16")
            if not deadline.allows(3 * (2 + len(peers)) * expected):  # until the first round is over
                figures["left_out"].append(shape.name)
                continue
            row = self._row(shape, ours, peers, device, timer, deadline)
            row["floor_ms"] = round(rates.floor_ms(counted(self.models, shape), "bf16"), 2)
            figures["rows"].append(row)
            save(figures)
            release(device)
        save(figures)
        return figures

    def _peers(self, state: Mapping[str, Tensor]) -> dict[str, Callable[[Batch], Action]]:
        """By name, what prepares a peer's call; all of them read our weights where they are."""
        peers = {}
        for name in self.contestants:
            if name not in PEERS:
                continue
            package, how = PEERS[name]
            if not _installed(package):
                logger.warning("%s is left out: %s is not installed", name, package)
                continue
            peers[name] = (_diffusers if package == "diffusers" else _ltx_core)(self.models, state, how)
        return peers

    def _row(
        self,
        shape: Shape,
        ours: nn.Module,
        peers: Mapping[str, Callable[[Batch], Action]],
        device: torch.device,
        timer: Timer,
        deadline: Deadline,
    ) -> JSON:
        inputs = Inputs.draw(self.models, shape, device)
        step = inputs.step(self.models, shape, ours)
        batch = Batch.of(self.models, shape, inputs)
        calls: dict[str, Action] = {OURS: with_kernels("auto", step.evaluate)}
        if OURS_EAGER in self.contestants:
            calls[OURS_EAGER] = with_kernels("eager", step.evaluate)
        calls |= {name: prepare(batch) for name, prepare in peers.items()}
        samples = in_turns(calls, self.repeat, timer, deadline, device)
        row = described(self.models, shape) | compared(samples)
        logger.info("%s: %s", shape.name, row.get("ratios"))
        row["relative_l2"] = {}
        # Of the conditional pass alone: the others are not the same function
        mine = step.call_transformer()[0]
        for name in peers:
            if samples[name].error is None:
                theirs: Any = calls[name]()
                row["relative_l2"][name] = {
                    stream: _relative(a[:1], b[:1])
                    for stream, a, b in zip(("video", "audio"), mine, theirs, strict=True)
                    if a is not None
                }
        return row

    def _decode(self, size: VideoSize, device: torch.device, timer: Timer, deadline: Deadline) -> JSON:
        """Latent to pixels on the device."""
        decoder: Any = self.models.build(Component.VIDEO_DECODER, device)
        theirs = _diffusers_video(self.models, decoder.state_dict())
        shape = size.latent(self.models.latent_channels, self.models.scale)
        latent = torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device)
        latent = latent.to(self.models.dtype)

        def ours() -> Tensor:
            with torch.inference_mode():
                return torch.cat(list(decoder.decode_streamed(latent)), dim=2)

        def peer() -> Tensor:
            with torch.no_grad():
                statistics = decoder.per_channel_statistics
                pixels: Tensor = theirs.decode(statistics.denormalise(latent).to(latent.dtype)).sample
            return pixels

        calls = {OURS: with_kernels("auto", ours), OURS_EAGER: with_kernels("eager", ours), "diffusers": peer}
        row: JSON = {"size": list(size), **compared(in_turns(calls, self.repeat, timer, deadline, device))}
        row["relative_l2"] = {} if row["errors"] else {"diffusers": _relative(ours(), peer())}
        return row


def compared(samples: Mapping[str, Samples]) -> JSON:
    """Times of all, and for each other one ours over theirs: of every round, since a round's calls follow each other.

    The best peer is the one with the least median.
    """
    done = {name: of for name, of in samples.items() if of.error is None}
    row: JSON = {
        "ms": {name: of.summary() for name, of in done.items()},
        "peak_bytes_beyond_weights": {name: of.peak_bytes for name, of in done.items()},
        "errors": {name: of.error for name, of in samples.items() if of.error is not None},
    }
    peers = [name for name in done if name not in (OURS, OURS_EAGER)]
    if OURS not in done:
        return row
    row["ratios"] = {}
    for name in done:
        if name != OURS:
            ratios = [mine / theirs for mine, theirs in zip(done[OURS].ms, done[name].ms, strict=True)]
            row["ratios"][name] = {
                "min": round(min(ratios), 4),
                "median": round(statistics.median(ratios), 4),
                "max": round(max(ratios), 4),
            }
    if peers:
        row["best_peer"] = min(peers, key=lambda name: done[name].median)
    return row


def _diffusers(models: SyntheticModels, state: Mapping[str, Tensor], how: str) -> Callable[[Batch], Action]:
    names = _diffusers_models()
    with torch.device("meta"):
        sizes = names.transformer_sizes(models.metadata["transformer"])
        module: Any = names.transformer(models.generation, **sizes).to(models.dtype)
    module.load_state_dict({names.transformer_key(key): t for key, t in state.items()}, strict=True, assign=True)
    if how == COMPILED:
        torch._dynamo.config.cache_size_limit = MOST_COMPILED
        module.compile_repeated_blocks(dynamic=False)

    def prepare(batch: Batch) -> Action:
        arguments = {
            "hidden_states": batch.video,
            "audio_hidden_states": batch.audio,
            "encoder_hidden_states": batch.prompts.video,
            "audio_encoder_hidden_states": batch.prompts.audio,
            "timestep": batch.sigma * 1000,
            "sigma": batch.sigma * 1000,
            "video_coords": batch.positions[0],
            "audio_coords": batch.positions[1],
            "use_cross_timestep": True,
            "return_dict": False,
        }

        def call() -> object:
            with torch.no_grad():
                return module(**arguments)

        return call

    return prepare


def _ltx_core(models: SyntheticModels, state: Mapping[str, Tensor], how: str) -> Callable[[Batch], Action]:
    here = "ltx_core.model.transformer"
    configurator = importlib.import_module(f"{here}.model_configurator").LTXModelConfigurator
    modality = importlib.import_module(f"{here}.modality").Modality
    with torch.device("meta"):
        module: Any = configurator.from_metadata({"config": models.metadata}).to(models.dtype)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    if how:
        compiling = importlib.import_module(f"{here}.compiling")
        module = compiling.compile_transformer(module, compiling.CompilationConfig(capture=how == CAPTURED))

    def prepare(batch: Batch) -> Action:
        video, audio = (
            modality(latent=latent, sigma=batch.sigma, timesteps=batch.sigma[:, None], positions=at, context=text)
            for latent, at, text in (
                (batch.video, batch.positions[0], batch.prompts.video),
                (batch.audio, batch.positions[1], batch.prompts.audio),
            )
        )

        def call() -> object:
            with torch.no_grad():
                return module(video=video, audio=audio, perturbations=None)

        return call

    return prepare


def _diffusers_video(models: SyntheticModels, state: Mapping[str, Tensor]) -> Any:
    """diffusers' video autoencoder with our decoder's weights, and an encoder that has none."""
    names = _diffusers_models()
    with torch.device("meta"):
        module: Any = names.video_vae_of(models.metadata["vae"], models.generation).to(models.dtype)
    keys = {name: names.official_video_vae_key(name, "decoder") for name in module.decoder.state_dict()}
    # In the layout that diffusers would have loaded them in
    weights = {name: state[key].clone(memory_format=torch.contiguous_format) for name, key in keys.items()}
    module.decoder.load_state_dict(weights, strict=True, assign=True)
    return module


def _diffusers_models() -> ModuleType:
    """What the parity tests know of diffusers' modules: names and sizes that are shown to give our numbers."""
    name = "ltx2_parity_diffusers_models"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "tests" / "parity" / "diffusers_models.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise LTX2Error(f"ltx2 bench peers needs the repository: there is no {path}")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _relative(mine: Tensor, theirs: Tensor) -> float:
    """Relative L2 norm of the difference."""
    return round(float((theirs.double() - mine.double()).norm() / mine.double().norm()), 6)
