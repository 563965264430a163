"""Where released files come from: what the names of the table say of themselves agrees with the table."""

from __future__ import annotations

import pytest
from ltx2_two_stage.ltx2_core.loading.artifact_names import Role, parse_name
from ltx2_two_stage.ltx2_core.loading.artifacts import select
from ltx2_two_stage.ltx2_core.loading.download import REPOSITORIES
from ltx2_two_stage.ltx2_core.loading.releases import (
    GENERATIONS,
    TEXT_ENCODER,
    find_release,
    release_for,
    released_set,
)
from ltx2_two_stage.ltx2_core.recipes import RECIPE_NAMES


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_a_set_is_what_the_names_would_be_chosen_for(generation: str, recipe: str) -> None:
    files = released_set(generation, recipe)
    picks = select([release.path for release in files], recipe).picks
    assert {pick.name: role for role, pick in picks.items()} == {release.path: release.role for release in files}
    for release in files:
        known = parse_name(release.name)
        assert known is not None and known.generation_text == generation
        assert release.repository == REPOSITORIES[generation]


def test_a_release_is_found_by_its_name_wherever_it_lies() -> None:
    assert find_release("ltx/new\\gemma_3_12B_it.safetensors") is TEXT_ENCODER
    checkpoint = find_release("ltx/ltx-2.3-22b-dev.safetensors")
    assert checkpoint is release_for(Role.CHECKPOINT, "2.3")
    assert str(checkpoint) == "ltx-2.3-22b-dev.safetensors (46.1 GB, from Lightricks/LTX-2.3)"
    assert find_release("mine.safetensors") is None


def test_there_is_a_release_for_every_part_of_a_run() -> None:
    for generation in GENERATIONS:
        for role in (Role.CHECKPOINT, Role.DISTILLED_LORA, Role.UPSAMPLER, Role.GEMMA):
            assert release_for(role, generation) is not None
        distilled = release_for(Role.CHECKPOINT, generation, distilled=True)
        assert distilled is not None and "distilled" in distilled.name
    assert release_for(Role.VIDEO_VAE, "2.3") is None
