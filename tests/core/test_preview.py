"""Whoever watches a run may look at the estimate after every step, and nothing is done where nobody looks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from host_waits import HostWaits
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.ltx2_core.loading.model_set import ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.protocols import NoProgress
from ltx2_two_stage.ltx2_core.recipe_choice import RecipeChoice
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.types import ImageCondition, LatentPair
from torch import Tensor

CPU = torch.device("cpu")


class Viewer(NoProgress):
    """Looks at the estimate after the steps that it is told to."""

    def __init__(self, *looks: int) -> None:
        self.looks, self.seen = looks, list[tuple[str, int, Tensor]]()
        self.offered: list[int] = []

    def preview(self, stage: str, done: int, latent: Callable[[], Tensor]) -> None:
        self.offered.append(done)
        if done in self.looks:
            self.seen.append((stage, done, latent()))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), "2.3")
    chosen = ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora)
    models = ModelSet.open(chosen, torch.float32)
    return Pipeline(models, open_manager(models, CPU, "auto"))


def request(pipeline: Pipeline, choice: RecipeChoice) -> GenerationRequest:
    recipe = choice.recipe(pipeline.models.generation, pipeline.models.num_layers)
    image = ImageCondition(torch.arange(64 * 128 * 3).remainder(251).to(torch.uint8).view(64, 128, 3), 8)
    return GenerationRequest("waves", recipe, "blurry", 128, 64, 17, images=(image,))


def denoise(pipeline: Pipeline, progress: NoProgress, choice: RecipeChoice) -> LatentPair:
    wanted = request(pipeline, choice)
    positive, negative = pipeline.encode_prompt(wanted)
    return pipeline.denoise(wanted, positive, negative, progress)


@pytest.mark.parametrize("preset", ["two-stage", "hq"])
def test_looking_gives_the_clip_without_keyframes_and_changes_nothing(pipeline: Pipeline, preset: str) -> None:
    choice, viewer = RecipeChoice(preset, 3), Viewer(1, 3)
    unseen, seen = denoise(pipeline, NoProgress(), choice), denoise(pipeline, viewer, choice)
    assert torch.equal(unseen.video, seen.video) and torch.equal(unseen.audio, seen.audio)
    assert viewer.offered == [1, 2, 3]
    assert [(stage, done) for stage, done, _ in viewer.seen] == [("stage_1", 1), ("stage_1", 3)]
    for _, _, latent in viewer.seen:
        assert latent.shape == seen.video.shape and latent.std() > 0.05
    first, last = (float((latent - seen.video).abs().mean()) for _, _, latent in viewer.seen)
    assert last < first, "the estimate comes to what the stage returns"


def test_offering_a_look_makes_nobody_wait(pipeline: Pipeline) -> None:
    """Between the steps: what is outside of the loop may wait, with and without a viewer."""
    choice = RecipeChoice("two-stage", 3)
    denoise(pipeline, NoProgress(), choice)  # reads the weights and encodes the prompts, which are kept
    waits: dict[bool, int] = {}
    for watched in (False, True):
        with HostWaits() as watch:
            denoise(pipeline, Viewer() if watched else NoProgress(), choice)
        waits[watched] = len(watch.seen)
    assert waits[True] == waits[False]
