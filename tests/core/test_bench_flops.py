"""Counted operations of the DiT against the counts that the peers were measured with, and what the plan saves."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from ltx2_two_stage.benchmarks.flops import Flops, Tokens, dit_flops, one_pass
from ltx2_two_stage.benchmarks.shapes import SHAPES, Shape, sweep
from ltx2_two_stage.benchmarks.synthetic_models import SyntheticModels
from ltx2_two_stage.ltx2_core.sampling.guidance import Pass
from ltx2_two_stage.ltx2_core.sampling.passes import Call
from ltx2_two_stage.ltx2_core.types import BatchItem, Perturbation


@cache
def models(generation: str = "2.3") -> SyntheticModels:
    return SyntheticModels(generation)


def full_passes(shape: Shape) -> float:
    """TFLOP of a shape's passes as anyone computes them."""
    config = models().transformer
    return shape.passes(models()) * one_pass(config, shape.tokens(models())).total / 1e12


def planned(shape: Shape) -> float:
    return dit_flops(models().transformer, shape.tokens(models()), shape.calls(models())).total / 1e12


@pytest.mark.parametrize(
    ("name", "tokens", "tflop"),
    [
        ("A1", 1536, 48.0),
        ("A4", 1536, 191.9),
        ("B", 6144, 198.9),
        ("C3", 8160, 826),
        ("E2", 24576, 1137),
        ("D", 32640, 1715),
    ],
)
def test_full_passes(name: str, tokens: int, tflop: float) -> None:
    """Half a percent: the counts that are compared with are rounded to three or four figures."""
    shape = SHAPES[name]
    assert shape.tokens(models()) == Tokens(tokens, 126, 1024)
    assert full_passes(shape) == pytest.approx(tflop, rel=0.005)


@pytest.mark.parametrize("name", ["A1", "B", "E2", "D"])
def test_one_pass_saves_nothing(name: str) -> None:
    assert planned(SHAPES[name]) == full_passes(SHAPES[name])


def test_four_passes_save_what_the_plan_shares() -> None:
    """28 of 192 block evaluations, a second reading of the text, and the exchange in the isolated pass."""
    saved = 1 - planned(SHAPES["A4"]) / full_passes(SHAPES["A4"])
    assert 28 / 192 < saved < 0.25


def test_three_passes_save_the_exchange_and_a_reading_of_the_text() -> None:
    saved = 1 - planned(SHAPES["C3"]) / full_passes(SHAPES["C3"])
    assert 0.03 < saved < 0.05


def test_each_saving_alone() -> None:
    config, tokens = models().transformer, Tokens(1536, 126, 1024)

    def count(*items: BatchItem, prompts: int = 1) -> Flops:
        return dit_flops(config, tokens, [Call((Pass.COND,) * len(items), items, slice(0, prompts))])

    plain = BatchItem()
    one, two = count(plain), count(plain, plain)
    video, audio = config.video.width, config.audio.width
    text = 2 * 2 * 1024 * (video**2 + audio**2) * config.num_layers
    assert one.total < two.total < 2 * one.total
    assert 2 * one.attention == two.attention
    # Two prompts: the text's keys and values of both
    assert count(plain, BatchItem(context=1), prompts=2).linear - two.linear == text
    # A perturbed block leaves out queries, keys and the attention itself
    perturbed = count(BatchItem(perturbation=Perturbation(frozenset({3}), frozenset({3}))))
    assert one.attention - perturbed.attention == 4 * (1536**2 * video + 126**2 * audio)
    assert one.linear - perturbed.linear == 2 * 2 * (1536 * video**2 + 126 * audio**2)
    # Branching off at block 28 of 48
    branch = BatchItem(perturbation=Perturbation(frozenset({28})), branches_from=0)
    assert count(plain, branch).attention < one.attention * (1 + 20 / 48)
    # A stream left out
    alone = BatchItem(perturbation=Perturbation(skip_cross_modal=True), audio=False)
    assert count(alone).total < count(BatchItem(perturbation=Perturbation(skip_cross_modal=True))).total < one.total


def test_captions_are_projected_in_the_older_generation() -> None:
    old, tokens = models("2.0").transformer, Tokens(1536, 126, 1024)
    captions = 2 * 1024 * sum(width * (3840 + width) for width in (old.video.width, old.audio.width))
    without = replace(old, caption_channels=None)
    assert one_pass(old, tokens).linear - one_pass(without, tokens).linear == captions


def test_the_sweep_spans_what_it_says() -> None:
    tokens = {shape.name: shape.tokens(models()).video for shape in sweep()}
    assert (min(tokens.values()), max(tokens.values())) == (1536, 32640)
    assert tokens["25 frames"] == 1536 and tokens["257 frames"] == 12672
    assert len(tokens) == 15
