"""Errors that say that memory ran out, whoever raises them, become one that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.device_manager.modes import lightest
from ltx2_two_stage.ltx2_core.errors import (
    DeviceMemoryError,
    LTX2Error,
    is_out_of_memory,
    memory_error,
    short_of_memory,
)
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from safetensors import SafetensorError

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:{line}] {what}. DefaultCPUAllocator: {problem}: you tried to allocate "
    "1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
)


def from_numpy() -> Exception:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.uint8)
    return caught.value


def from_torch() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    return caught.value


HOST: dict[str, Exception] = {
    "python": MemoryError(),
    "numpy": from_numpy(),
    "torch here": from_torch(),
    "torch linux": RuntimeError(CPU_ALLOCATOR.format(line=121, what="err == 0", problem="can't allocate memory")),
    "torch windows": RuntimeError(CPU_ALLOCATOR.format(line=115, what="data", problem="not enough memory")),
    "c++": RuntimeError("std::bad_alloc"),
    "map": RuntimeError("unable to mmap 46149345280 bytes from file </m/a.safetensors>: Cannot allocate memory (12)"),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "paging file": SafetensorError("I/O: The paging file is too small for this operation to complete. (os error 1455)"),
    "pinned": RuntimeError("CUDA error: out of memory (cudaHostAlloc of 1073741824 bytes)"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
}
DEVICE: dict[str, Exception] = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free."),
    "malloc async": torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    "malloc async, untyped": RuntimeError("Allocation on device"),
    "runtime": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "driver": RuntimeError("CUDA driver error: out of memory"),
    "driver's name": RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    "triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cusolver": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    "cufft": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "amd": RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    "apple": RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB, other allocations: 1 GB)"),
}
if hasattr(torch, "AcceleratorError"):
    accelerator = torch.AcceleratorError.__new__(torch.AcceleratorError)
    Exception.__init__(accelerator, "CUDA error: out of memory")
    DEVICE["accelerator"] = accelerator
OTHERS: dict[str, Exception] = {
    "index": RuntimeError("CUDA error: device-side assert triggered"),
    "shape": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "launch": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "math": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "value": ValueError("out of memory"),
    "ours": DeviceMemoryError("the device ran out of memory"),
    "words": LTX2Error("CUDA out of memory"),
}


@pytest.mark.parametrize(
    ("error", "which"),
    [
        *(pytest.param(error, "host", id=f"host {name}") for name, error in HOST.items()),
        *(pytest.param(error, "device", id=f"device {name}") for name, error in DEVICE.items()),
        *(pytest.param(error, None, id=f"other {name}") for name, error in OTHERS.items()),
    ],
)
def test_errors_of_allocators_are_known_by_their_words(error: Exception, which: str | None) -> None:
    assert short_of_memory(error) == which and is_out_of_memory(error) is (which is not None)


class Residency:
    """Falls back once."""

    def __init__(self) -> None:
        self.mode, self.problems = "resident", list[str]()
        self.lightest = {"device": "snapshot-low", "host": "original"}

    def fall_back(self, problem: str) -> bool:
        self.problems.append(problem)
        self.mode = "snapshot"
        return len(self.problems) == 1


def failing(errors: list[Exception]) -> Callable[..., Any]:
    def upsample(*arguments: Any) -> str:
        if errors:
            raise errors.pop(0)
        return "upsampled"

    return upsample


@pytest.mark.parametrize("error", DEVICE.values(), ids=DEVICE.keys())
def test_a_stage_is_tried_again_in_a_smaller_mode(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    residency: Any = Residency()
    pipeline = Pipeline(SimpleNamespace(), residency)  # type: ignore[arg-type]
    monkeypatch.setattr("ltx2_two_stage.ltx2_core.pipeline.upsample", failing([error]))
    assert pipeline.upsample(None) == "upsampled"  # type: ignore[arg-type, comparison-overlap]
    monkeypatch.setattr("ltx2_two_stage.ltx2_core.pipeline.upsample", failing([error] * 2))
    with pytest.raises(DeviceMemoryError, match=r"^the device ran out of memory \(device mode snapshot\).*Choose a sm"):
        pipeline.upsample(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", HOST.values(), ids=HOST.keys())
def test_the_machines_memory_has_an_error_of_its_own(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller device mode would take more of it."""
    residency: Any = Residency()
    pipeline = Pipeline(SimpleNamespace(), residency)  # type: ignore[arg-type]
    for stage in ("upsample", "decode"):
        monkeypatch.setattr(f"ltx2_two_stage.ltx2_core.pipeline.{stage}", failing([error]))
    with pytest.raises(DeviceMemoryError, match=r"\(RAM\) \(device mode resident\): .*add RAM") as caught:
        pipeline.upsample(None)  # type: ignore[arg-type]
    assert residency.problems == [] and "\n" not in str(caught.value)
    with pytest.raises(DeviceMemoryError, match=r"\(RAM\)"):
        pipeline.decode(None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "mode", "advice"),
    [
        pytest.param(DEVICE["torch"], "resident", "or try device-mode snapshot-low.", id="smaller"),
        pytest.param(DEVICE["torch"], "", "or try device-mode snapshot-low.", id="no mode yet"),
        pytest.param(DEVICE["torch"], "snapshot, then snapshot-low", "or close other programs.", id="the smallest"),
        pytest.param(HOST["python"], "resident", "On a CPU, device-mode original keeps one copy of", id="one copy"),
        pytest.param(HOST["python"], "original", "or add RAM or swap space.", id="one copy already"),
    ],
)
def test_the_advice_names_a_mode_that_takes_less(error: Exception, mode: str, advice: str) -> None:
    said = str(memory_error(error, mode, lightest()))
    assert advice in said and said.count("device-mode") == advice.count("device-mode")


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(SimpleNamespace(), Residency())  # type: ignore[arg-type]
    monkeypatch.setattr("ltx2_two_stage.ltx2_core.pipeline.upsample", failing([OTHERS["shape"]]))
    with pytest.raises(RuntimeError) as caught:
        pipeline.upsample(None)  # type: ignore[arg-type]
    assert caught.value is OTHERS["shape"]


def test_what_was_asked_for_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where no stage runs yet, on the command line."""

    def too_large(_arguments: Any) -> None:
        raise HOST["torch linux"]

    monkeypatch.setitem(cli.COMMANDS, "inspect", too_large)
    assert cli.main(["inspect", "x"]) == 2
    said = capsys.readouterr().err
    assert "the machine ran out of memory (RAM): 1125899.91 GB could not be allocated." in said
