"""The stage-1 schedule against diffusers' flow-match Euler scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from ltx2_two_stage.ltx2_core.sampling.schedules import guided_sigmas


@pytest.mark.parametrize("tokens", [1536, 4096, 6144, 8160])
@pytest.mark.parametrize("steps", [8, 15, 30, 40])
def test_schedule(steps: int, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
        time_shift_type="exponential",
    )
    slope = (2.05 - 0.95) / (4096 - 1024)
    mu = tokens * slope + (0.95 - 1024 * slope)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    # 5e-7: both are float32 chains of the same five operations in different order (docs/model.md 11.3)
    assert (scheduler.sigmas - torch.tensor(guided_sigmas(steps, tokens))).abs().max() <= 5e-7
