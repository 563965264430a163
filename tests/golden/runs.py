"""Runs whose latents are kept in ``latents.safetensors``.

``python tests/golden/runs.py`` makes that file anew, with the package installed; names of runs as arguments make those
alone, and leave the others as they were kept. Do so only when a change of the numbers is wanted, and say why in the
commit.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.recipe_choice import GuidanceChoice, RecipeChoice
from ltx2_two_stage.ltx2_core.recipes import REVISIONS
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.types import AudioClip, ImageCondition
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).with_name("latents.safetensors")
WIDTH, HEIGHT, FRAMES, FPS, SEED = 128, 64, 17, 24.0, 3
PROMPT, NEGATIVE = "A violin plays in the rain.", "blurry, silent"
KEPT = ("stage1_video", "stage1_audio", "stage2_video", "stage2_audio")
Generation = Literal["2.0", "2.3"]


@dataclass(frozen=True)
class GoldenRun:
    """What is asked for.

    Attributes:
        images: frame and strength of each.
        sound: seconds of a given one.
        loras: strength and stage of each.
    """

    generation: Generation = "2.3"
    choice: RecipeChoice = field(default_factory=lambda: RecipeChoice("two-stage", 3))
    images: tuple[tuple[int, float], ...] = ()
    sound: float = 0.0
    loras: tuple[tuple[float, Literal["1", "2", "both"]], ...] = ()


RUNS: Mapping[str, GoldenRun] = {
    "two-stage": GoldenRun(),
    "two-stage of LTX-2": GoldenRun("2.0"),
    "hq": GoldenRun(choice=RecipeChoice("hq", 3), images=((0, 0.8),)),
    "distilled": GoldenRun(choice=RecipeChoice("distilled")),
    "one-stage": GoldenRun(choice=RecipeChoice("one-stage", 3)),
    "keyframes": GoldenRun(images=((0, 1.0), (8, 0.6), (-1, 0.9))),
    "given sound": GoldenRun(sound=0.5),
    "gradient estimation": GoldenRun(choice=RecipeChoice("two-stage", 4, sampler="gradient_estimation")),
    "user LoRAs": GoldenRun(loras=((0.7, "1"), (-0.4, "both"))),
    "overrides": GoldenRun(
        choice=RecipeChoice(
            "two-stage",
            sigmas=(1.0, 0.8, 0.3, 0.0),
            refine_sigmas=(0.7, 0.2, 0.0),
            video=GuidanceChoice(cfg=2.0, stg=0.5, blocks=(0, 2)),
            audio=GuidanceChoice(rescale=0.0, skip=1),
            distilled_strength=(0.1, 0.6),
            revision=REVISIONS["1.0.0"],
        )
    ),
}


def latents(run: GoldenRun, files: TinyFiles) -> dict[str, Tensor]:
    """The latents of one run, float32 on the CPU."""
    loras = tuple(LoRASource(files.lora, *lora) for lora in run.loras)
    models = ModelSet.open(
        ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora, loras), torch.float32
    )
    request = GenerationRequest(
        PROMPT,
        run.choice.recipe(models.generation, models.num_layers),
        "" if run.choice.preset == "distilled" else NEGATIVE,
        WIDTH,
        HEIGHT,
        FRAMES,
        FPS,
        SEED,
        images=tuple(ImageCondition(_picture(frame), frame, strength) for frame, strength in run.images),
        audio=_sound(run.sound) if run.sound else None,
        image_crf=0,  # an H.264 encoder's pixels depend on the machine
        audio_source=run.choice.audio_source,
        revision=run.choice.revision,
    )
    made = Pipeline(models, open_manager(models, torch.device("cpu"), "original")).run(request, keep_latents=True)
    return {name: made.latents[name] for name in KEPT if name in made.latents}


def _picture(number: int) -> Tensor:
    """Colours that change smoothly, uint8 (H, W, 3)."""
    y, x = torch.meshgrid(torch.arange(72), torch.arange(100), indexing="ij")
    waves = [torch.sin(x / 9 + number), torch.cos(y / 7 - number), torch.sin((x + y) / 12)]
    return (torch.stack(waves, dim=-1) * 100 + 128).to(torch.uint8)


def _sound(seconds: float) -> AudioClip:
    """A tone on each side, in noise."""
    t = torch.arange(round(seconds * 16000), dtype=torch.float64) / 16000
    noise = torch.randn(2, len(t), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sides = torch.stack([torch.sin(2 * math.pi * hertz * t) for hertz in (440, 660)])
    return AudioClip((0.4 * sides + 0.05 * noise)[None].float(), 16000)


def main(names: Sequence[str] = ()) -> None:
    wanted = {name: RUNS[name] for name in names} or RUNS
    kept = load_file(GOLDEN) if names else {}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[Generation, TinyFiles] = {
            generation: write_tiny(Path(folder) / generation, generation, dtype="float32")
            for generation in ("2.0", "2.3")
        }
        tensors = kept | {
            f"{name}/{key}": tensor
            for name, run in wanted.items()
            for key, tensor in latents(run, files[run.generation]).items()
        }
    save_file(tensors, GOLDEN)
    sys.stdout.write(f"{GOLDEN}: {len(tensors)} tensors, {GOLDEN.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1:])
