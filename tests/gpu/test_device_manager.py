"""The device manager with real streams, pinned memory and device memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from device_waits import switch_without_waiting
from ltx2_two_stage.device_manager import host_memory
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.device_manager.modes import MODES
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.streams import Streams
from switching import HOST_COPY, MERGED, Source, assert_clean, fail_copies, oracle, random_sequence, run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_base_weights_survive_random_sequences(cuda: torch.device, mode: Mode, seed: int) -> None:
    random_sequence(mode, seed, Streams(cuda))


@pytest.mark.parametrize("mode", MERGED, ids=str)
def test_merging_modes_run_on_merged_weights_bit_for_bit(cuda: torch.device, mode: Mode) -> None:
    source = Source()
    switchable = source.switchable(mode, Streams(cuda))
    for strength in (1.0, 0.5, 0.0, 1.0, 1.0, 0.0):
        assert torch.equal(run(switchable, strength, then=0.5), oracle(source, strength, cuda))
    assert_clean(switchable, source)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_switching_never_waits_for_the_device(cuda: torch.device, mode: Mode) -> None:
    switch_without_waiting(Source().switchable(mode, Streams(cuda)), torch.zeros(3, 8, device=cuda), "distilled")


@pytest.mark.parametrize("mode", HOST_COPY, ids=str)
def test_the_host_copy_is_pinned_and_given_back(cuda: torch.device, mode: Mode) -> None:
    source = Source()
    switchable = source.switchable(mode, Streams(cuda))
    run(switchable, 1.0)
    assert source.budget.pinned == sum(switchable.host_bytes.values()) > 0
    assert all(memory.is_pinned() for memory in switchable.base.host.memory if memory.numel())
    switchable.drop()
    assert source.budget.pinned == 0


@pytest.mark.parametrize("mode", HOST_COPY, ids=str)
def test_memory_that_cannot_be_pinned_stays_pageable(
    cuda: torch.device, mode: Mode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = host_memory._cudart()

    class Refusing:
        """A driver that cannot lock these pages: the call fails as cudaHostRegister does on a bad address."""

        def cudaHostRegister(self, _address: int, nbytes: int, flags: int) -> Any:
            return real.cudaHostRegister(0, nbytes, flags)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(host_memory, "_cudart", Refusing)
    source = Source()
    switchable = source.switchable(mode, Streams(cuda))
    with caplog.at_level(logging.WARNING, "ltx2.device"):
        for strength in (1.0, 0.0, 0.5):
            assert torch.equal(run(switchable, strength), oracle(source, strength, cuda))
    assert source.budget.pinned == 0
    assert len([record for record in caplog.records if "stay pageable" in record.message]) == 1
    torch.cuda.synchronize()  # no error was left behind
    assert_clean(switchable, source)


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("mode", HOST_COPY, ids=str)
def test_an_upload_that_fails_midway_leaves_a_usable_module(
    cuda: torch.device, mode: Mode, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    switchable = source.switchable(mode, Streams(cuda))
    run(switchable, 0.0)
    switchable.release()
    with monkeypatch.context() as patched:
        fail_copies(patched, failing)
        with pytest.raises(RuntimeError, match="the copy failed"):
            run(switchable, 1.0)
    for strength in (1.0, 0.0):
        assert torch.equal(run(switchable, strength), oracle(source, strength, cuda))
    assert_clean(switchable, source)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_host_may_take_the_memory_between_runs_and_never_during_one(cuda: torch.device, mode: Mode) -> None:
    source = Source()
    spec = source.switchable(mode).base.spec
    manager = DeviceManager(cuda, mode, "a test", ("model", spec), {}, PinnedBudget())
    allocated = []
    for _ in range(3):
        with torch.inference_mode(), manager.use("model", {"distilled": 1.0}) as module:
            assert manager.release_if_idle() == 0
            module(torch.zeros(3, 8, device=cuda))
        held = manager.device_bytes
        assert held > 0 and manager.release_if_idle() == held and manager.device_bytes == 0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what other streams were still reading is free now
        allocated.append(torch.cuda.memory_allocated(cuda))
    # The first run made workspaces of libraries
    assert allocated[2] <= allocated[1] <= allocated[0]
