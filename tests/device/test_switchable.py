"""The module with two sets of weights: same results in every mode, base weights that survive anything."""

from __future__ import annotations

import pytest
import torch
from ltx2_two_stage.device_manager.layout import unique_tensors
from ltx2_two_stage.device_manager.modes import MODES, RESIDENT, SNAPSHOT
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.streams import Streams
from switching import (
    BESIDE,
    CPU,
    HOST_COPY,
    MERGED,
    WIDTH,
    Apart,
    Source,
    assert_clean,
    fail_copies,
    oracle,
    random_sequence,
    run,
)

SECOND_SET = [RESIDENT, SNAPSHOT]  # the merged weights are beside the base
STREAMS = {"on one device": lambda: Streams(CPU), "host and device apart": Apart}


@pytest.fixture(params=STREAMS.values(), ids=STREAMS.keys())
def streams(request: pytest.FixtureRequest) -> Streams:
    return request.param()  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", MERGED, ids=str)
def test_merging_modes_run_on_merged_weights_bit_for_bit(mode: Mode, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    for strength in (1.0, 0.5, 0.0, 1.0, 1.0, 0.0):
        assert torch.equal(run(switchable, strength), oracle(source, strength))
    assert_clean(switchable, source)
    assert source.reads == 1


@pytest.mark.parametrize("mode", BESIDE, ids=str)
def test_other_modes_apply_adapters_on_the_fly(mode: Mode, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    assert torch.equal(run(switchable, 0.0), oracle(source, 0.0))
    for strength in (1.0, 0.25):
        # float32 rounding of another order of products
        assert (run(switchable, strength) - oracle(source, strength)).abs().max() < 1e-5
    assert_clean(switchable, source)


@pytest.mark.parametrize("before", [0.0, 0.25])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_prefetch_changes_no_result(mode: Mode, before: float, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    for strength in (1.0, 0.5, 0.5):
        assert (run(switchable, before, then=strength) - oracle(source, before)).abs().max() < 1e-5
        result = run(switchable, strength)
        assert (result - oracle(source, strength)).abs().max() < 1e-5
        assert mode in BESIDE or torch.equal(result, oracle(source, strength))
    assert_clean(switchable, source)


@pytest.mark.parametrize("mode", SECOND_SET, ids=str)
def test_a_prefetched_set_is_made_layer_by_layer_while_the_base_computes(mode: Mode, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    run(switchable, 0.0)
    with switchable.use({}) as module:
        switchable.prefetch({"distilled": 1.0})
        assert "merged" not in switchable.device_bytes  # nothing yet: the host has work of its own to do
        held = []
        for layer in module.layers:
            layer(torch.zeros(1, WIDTH))
            held.append(switchable.device_bytes["merged"])
        assert held == sorted(set(held))
    source.fail = "merge"  # which would be noticed
    assert torch.equal(run(switchable, 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("mode", SECOND_SET, ids=str)
def test_no_room_for_a_prefetch_costs_the_prefetch_alone(mode: Mode, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    run(switchable, 0.0)
    source.fail = "memory"
    assert torch.equal(run(switchable, 0.0, then=1.0), oracle(source, 0.0))
    assert "merged" not in switchable.device_bytes
    source.fail = None
    assert torch.equal(run(switchable, 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_adapters_are_never_on_the_device_as_a_whole_where_they_are_merged(mode: Mode) -> None:
    source = Source()
    switchable = source.switchable(mode, Apart())
    run(switchable, 0.0)
    with switchable.use({"distilled": 1.0}) as module:
        module(torch.zeros(1, WIDTH))
        assert ("adapters" in switchable.device_bytes) == (mode in BESIDE)
    assert "adapters" not in switchable.device_bytes and switchable.host_bytes["adapters"] > 0


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_failed_read_leaves_nothing_behind(mode: Mode) -> None:
    source = Source()
    switchable = source.switchable(mode)
    source.fail = "fill"
    with pytest.raises(OSError, match="went away"):
        run(switchable, 0.0)
    source.fail = None
    assert torch.equal(run(switchable, 0.0), oracle(source, 0.0))


@pytest.mark.parametrize("mode", MERGED, ids=str)
def test_a_merge_that_fails_midway_is_undone(mode: Mode, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    run(switchable, 0.0)
    source.fail = "merge"
    with pytest.raises(RuntimeError, match="middle of a merge"):
        run(switchable, 1.0)
    assert_clean(switchable, source)
    source.fail = None
    assert torch.equal(run(switchable, 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("mode", HOST_COPY, ids=str)
def test_an_upload_that_fails_midway_leaves_a_usable_module(
    mode: Mode, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    switchable = source.switchable(mode, Apart())
    run(switchable, 0.0)
    switchable.release()
    with monkeypatch.context() as patched:
        fail_copies(patched, failing)
        with pytest.raises(RuntimeError, match="the copy failed"):
            run(switchable, 1.0)
    for strength in (1.0, 0.0):
        assert torch.equal(run(switchable, strength), oracle(source, strength))
    assert_clean(switchable, source)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_release_gives_memory_back_and_the_next_use_restores(mode: Mode, streams: Streams) -> None:
    source = Source()
    switchable = source.switchable(mode, streams)
    run(switchable, 1.0)
    held = sum(switchable.device_bytes.values())
    assert held > 0 and switchable.release() == held
    assert not switchable.device_bytes
    assert torch.equal(run(switchable, 0.0), oracle(source, 0.0))
    # a host copy makes a second read unnecessary
    assert source.reads == (1 if mode.keeps_host_copy else 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_base_weights_survive_random_sequences(mode: Mode, seed: int, streams: Streams) -> None:
    random_sequence(mode, seed, streams)


@pytest.mark.parametrize("mode", HOST_COPY, ids=str)
def test_after_a_release_the_module_shows_the_host_copy_alone(mode: Mode) -> None:
    """A buffer that still showed the device's memory would keep its layer's memory there."""
    switchable = Source().switchable(mode, Apart())
    with switchable.use({"distilled": 0.0}) as module:
        tensors = [tensor for _, tensor in unique_tensors(module)]
        assert switchable.base.host is not None and switchable.base.device is not None
        host, device = (
            {memory.untyped_storage().data_ptr() for memory in weights.memory}
            for weights in (switchable.base.host, switchable.base.device)
        )
        assert {tensor.untyped_storage().data_ptr() for tensor in tensors} <= device
    switchable.release()
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} <= host
