"""fp8 weights and their float32 scales in every device mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fp8_switching import SCALED, WIDTH, Source, run, skeleton
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.layout import Layout, unique_tensors
from ltx2_two_stage.device_manager.modes import MODES
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.device_manager.weights import WeightSet, assign, moved_together
from switching import BESIDE, CPU, MERGED, Apart

STREAMS = {"on one device": lambda: Streams(CPU), "host and device apart": Apart}


@pytest.fixture(params=STREAMS.values(), ids=STREAMS.keys())
def streams(request: pytest.FixtureRequest) -> Streams:
    return request.param()  # type: ignore[no-any-return]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def test_flat_memory_holds_every_dtype(source: Source) -> None:
    model = skeleton(torch.bfloat16)
    layout = Layout.of(model, "layers")
    dtypes = {slot.name: slot.dtype for slot in layout.slots}
    assert {dtypes[f"{path}.weight"] for path in SCALED} == {torch.float8_e4m3fn}
    assert {dtypes[f"{path}.weight_scale"] for path in SCALED} == {torch.float32}
    assert dtypes["layers.2.weight"] is dtypes["layers.0.bias"] is torch.bfloat16
    # Weight, scales and bias of one layer, each rounded up to 256 bytes
    assert layout.group_bytes[1] == WIDTH * WIDTH + 2 * 256
    weights = WeightSet(layout, CPU)
    source.fill(weights.named())
    assign(model, weights.views)
    for name, tensor in unique_tensors(model):
        assert torch.equal(tensor.float(), source.weights[name].to(tensor.dtype).float()), name
    tensors = [tensor for _, tensor in unique_tensors(source.module(CPU))]
    moved = moved_together(tensors, layout, CPU, PinnedBudget())
    assert all(a.dtype is b.dtype for a, b in zip(moved.views, weights.views, strict=True))


@pytest.mark.parametrize("mode", MERGED, ids=str)
def test_merging_modes_run_on_requantised_weights_bit_for_bit(mode: Mode, streams: Streams, source: Source) -> None:
    switchable = source.switchable(mode, streams)
    plain = run(switchable, source, 0.0)
    for strength in (1.0, 0.5, 0.0, 1.0, 1.0, 0.0):
        result = run(switchable, source, strength)
        assert torch.equal(result, source.merged(strength, CPU))
        assert torch.equal(result, plain) == (strength == 0)
        source.assert_clean(switchable)


@pytest.mark.parametrize("mode", BESIDE, ids=str)
def test_other_modes_compute_the_adapter_beside_fp8_weights(mode: Mode, streams: Streams, source: Source) -> None:
    switchable = source.switchable(mode, streams)
    for strength in (0.0, 1.0, 0.25):
        result = run(switchable, source, strength)
        assert torch.equal(result, source.dynamic(strength, CPU))
        merged = source.merged(strength, CPU)
        assert (result - merged).norm() < 0.06 * merged.norm()  # measured: 0.04 at strength 1, one rounding to fp8
    source.assert_clean(switchable)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_prefetch_changes_no_result(mode: Mode, streams: Streams, source: Source) -> None:
    switchable = source.switchable(mode, streams)
    expected = source.dynamic if mode in BESIDE else source.merged
    for strength in (1.0, 0.5, 0.5):
        run(switchable, source, 0.0, then=strength)
        assert torch.equal(run(switchable, source, strength), expected(strength, CPU))
    source.assert_clean(switchable)
    switchable.release()
    source.assert_clean(switchable)
