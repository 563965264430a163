"""What is asked for call by call gives the bits that a switch for the whole process gave."""

from __future__ import annotations

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels.attention import attention
from ltx2_two_stage.ltx2_core.models.repeatable import RepeatableConvolutions
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.mark.parametrize("keys", [4096, 6144])
def test_few_queries_on_many_keys_take_the_same_kernel(cuda: torch.device, keys: int) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    q, k, v = (
        torch.randn(1, 32, length, 64, dtype=torch.bfloat16, device=cuda, generator=generator)
        for length in (126, keys, keys)
    )
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        expected = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention(q, k, v), expected)


@torch.no_grad()
def test_repeatable_convolutions_equal_cudnns_deterministic_ones(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    x = torch.randn(1, 64, 4096, device=cuda, generator=generator)
    layers = [torch.nn.Conv1d(64, 64, 7, padding=9, dilation=3), torch.nn.ConvTranspose1d(64, 32, 16, 6, padding=5)]
    for layer in layers:
        layer.to(cuda)
        with RepeatableConvolutions():
            found = layer(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "deterministic", True)
            assert torch.equal(found, layer(x))
