"""Files in the official format with random weights: tiny ones for tests and demos, full-size models for benchmarks."""

from __future__ import annotations

from .synthetic_configs import (
    Variant,
    full_size_config,
    full_size_upsampler_config,
    tiny_config,
    tiny_upsampler_config,
)
from .synthetic_weights import fill_random_

__all__ = [
    "Variant",
    "fill_random_",
    "full_size_config",
    "full_size_upsampler_config",
    "tiny_config",
    "tiny_upsampler_config",
]
