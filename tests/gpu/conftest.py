"""A CUDA device to test on, and the modules that these tests share with those of the engine."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

for _folder in ("core", "device", "gpu"):
    sys.path.append(str(Path(__file__).parent.parent / _folder))


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The first CUDA device; without one the test is skipped with a warning, or fails where REQUIRE_CUDA=1."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if os.environ.get("REQUIRE_CUDA") == "1":
        pytest.fail("REQUIRE_CUDA=1, but torch finds no CUDA device")
    warnings.warn("the GPU tests did NOT run: torch finds no CUDA device", stacklevel=1)
    pytest.skip("torch finds no CUDA device")
