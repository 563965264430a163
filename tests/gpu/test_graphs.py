"""CUDA graphs and lanes against plain calls: the same kernels on the same numbers, so the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels import lanes
from ltx2_two_stage.ltx2_core.models.transformer import graphs
from ltx2_two_stage.ltx2_core.models.transformer import model as transformer_model
from ltx2_two_stage.ltx2_core.models.transformer.graphs import GraphedCalls
from tiny_stage import TinyStage, build_stage, standard_guidance, tiny_transformer
from torch import Tensor

pytestmark = pytest.mark.gpu

SIGMAS = (0.9, 0.7, 0.5, 0.2)


@pytest.fixture
def stage(cuda: torch.device) -> TinyStage:
    return build_stage(tiny_transformer(), cuda, torch.bfloat16, (2, 4, 6), 9)


def results(stage: TinyStage, graphed: bool, separate: bool = False, captures: int = 1) -> list[Tensor]:
    """The guided estimates of a few steps, each from other latents."""
    model = stage.guided(standard_guidance(1), separate=separate)
    if graphed:
        model.transformer = GraphedCalls(model.transformer)
    found: list[Tensor] = []
    for step, sigma in enumerate(SIGMAS):
        video = replace(stage.video, latent=stage.video.latent * (1 + step))
        found += [part.clone() for part in model(video, stage.audio, sigma, step)]
    if graphed:
        captured = model.transformer._captured
        assert len(captured) == captures
    return found


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("separate", [False, True], ids=["batched", "separate"])
def test_replays_equal_plain_calls(stage: TinyStage, separate: bool, image: bool) -> None:
    stage = stage.with_image() if image else stage
    with torch.inference_mode():
        plain, replayed = results(stage, False, separate), results(stage, True, separate, 4 if separate else 1)
    for one, other in zip(plain, replayed, strict=True):
        assert torch.equal(one, other)


def test_two_lanes_equal_one(stage: TinyStage, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[type[lanes.Lanes]] = []

    def seen(tokens: Tensor, items: int) -> lanes.Lanes:
        found = lanes.lanes_for(tokens, items)
        chosen.append(type(found))
        return found

    with torch.inference_mode():
        monkeypatch.setattr(transformer_model, "lanes_for", seen)
        two = results(stage, True)
        monkeypatch.setattr(transformer_model, "lanes_for", lambda _tokens, _items: lanes.Lanes())
        one = results(stage, True)
    # The first call runs as it is, the second is captured
    assert chosen == [lanes.Lanes, lanes.TwoLanes]
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second)


def test_hooks_before_blocks_run_before_a_replay(stage: TinyStage) -> None:
    """The device manager waits for weights, and merges, in them."""
    calls = 0

    def count(_block: torch.nn.Module, _inputs: object) -> None:
        nonlocal calls
        calls += 1

    handles = [block.register_forward_pre_hook(count) for block in stage.model.transformer_blocks]
    try:
        model = stage.guided(standard_guidance(1))
        model.transformer = GraphedCalls(model.transformer)
        seen = []
        for step, sigma in enumerate(SIGMAS):
            model(stage.video, stage.audio, sigma, step)
            seen.append(calls)
    finally:
        for handle in handles:
            handle.remove()
    layers = len(stage.model.transformer_blocks)
    # As it is; captured, where the blocks themselves call them again; replayed twice
    assert seen == [layers, 3 * layers, 4 * layers, 5 * layers]


@pytest.mark.parametrize(
    ("most_rows", "calls"),
    [(4, graphs.LEAST_CALLS), (graphs.MOST_ROWS, graphs.LEAST_CALLS - 1)],
    ids=["large calls", "few calls"],
)
def test_calls_that_are_not_captured(
    stage: TinyStage, monkeypatch: pytest.MonkeyPatch, most_rows: int, calls: int
) -> None:
    monkeypatch.setattr(graphs, "MOST_ROWS", most_rows)
    model = stage.guided(standard_guidance(1))
    model.transformer = GraphedCalls(model.transformer, calls)
    for step, sigma in enumerate(SIGMAS):
        model(stage.video, stage.audio, sigma, step)
    assert not model.transformer._captured


def test_what_cannot_be_captured_runs_as_it_is(stage: TinyStage, caplog: pytest.LogCaptureFixture) -> None:
    expected = results(stage, False)

    def waits(_block: torch.nn.Module, _inputs: object, _output: object) -> None:
        if torch.cuda.is_current_stream_capturing():
            stage.video.latent.sum().item()

    handle = stage.model.transformer_blocks[0].register_forward_hook(waits)
    try:
        model = stage.guided(standard_guidance(1))
        model.transformer = GraphedCalls(model.transformer)
        found: list[Tensor] = []
        for step, sigma in enumerate(SIGMAS):
            video = replace(stage.video, latent=stage.video.latent * (1 + step))
            found += [part.clone() for part in model(video, stage.audio, sigma, step)]
    finally:
        handle.remove()
    assert "without CUDA graphs" in caplog.text
    # The process's own random numbers go on
    assert torch.rand(8, device=stage.video.latent.device).unique().numel() > 1
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def compare_under_another_allocator() -> None:
    """In a process of its own, whose allocator is not PyTorch's."""
    assert torch.cuda.get_allocator_backend() == "cudaMallocAsync"
    stage = build_stage(tiny_transformer(), torch.device("cuda"), torch.bfloat16, (2, 4, 6), 9)
    with torch.inference_mode():
        plain, asked_for_graphs = results(stage, False), results(stage, True, captures=0)
    assert all(torch.equal(one, other) for one, other in zip(plain, asked_for_graphs, strict=True))


@pytest.mark.usefixtures("cuda")
def test_another_allocator_has_no_graphs() -> None:
    """ComfyUI's usual one: Triton refuses what it has for a graph, and the process ends when that is given up."""
    tests = Path(__file__).parent.parent
    code = f"import runpy; runpy.run_path({str(tests / 'conftest.py')!r}); import test_graphs as t; "
    path = os.pathsep.join([*(str(tests / folder) for folder in ("gpu", "core", "device")), *sys.path])
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync", "PYTHONPATH": path}
    command = [sys.executable, "-c", code + "t.compare_under_another_allocator()"]
    run = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
