"""Gemma's states of the real tokens against the left-padded run of official code, and against Gemma 3 written out.

Tolerance: 5e-5 absolute in float32 on states of order 1 to 11. Rotary angles at other absolute positions round
differently (docs/model.md 3.1 has 8e-6, this model 1.6e-5); a wrong mask, window, theta or state shows from 1e-2 on.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import SLIDING_WINDOW, write_tiny_gemma
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource, gemma_hidden_states
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 5e-5
LENGTH, WIDTH, LAYERS, HEAD_DIM = 256, 48, 4, 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder: Path = tmp_path_factory.mktemp("gemma")
    write_tiny_gemma(folder, hidden_size=WIDTH, num_layers=LAYERS, generator=torch.Generator().manual_seed(0))
    return GemmaSource.open(folder).load_model(torch.float32, "cpu")


def prompt(n: int) -> Tensor:
    return torch.randint(4, 300, (n,), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [1, 37, 100])
def test_real_tokens_alone_equal_the_padded_run(model: nn.Module, n: int) -> None:
    row = torch.cat((torch.zeros(LENGTH - n, dtype=torch.int64), prompt(n)))[None]
    mask = (torch.arange(LENGTH) >= LENGTH - n).long()[None]
    with torch.no_grad():
        padded = model(row, attention_mask=mask, output_hidden_states=True)
    expected = torch.stack(padded.hidden_states, dim=-1)[0, -n:]
    states = gemma_hidden_states(model, prompt(n))
    assert states.shape == (n, WIDTH, LAYERS + 1)
    assert states.dtype == torch.float32
    assert (states - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("n", [1, 37, 100])
def test_states_equal_gemma_written_out(model: nn.Module, n: int) -> None:
    """Whatever transformers calls its settings, they have to arrive: 100 tokens outgrow the sliding window."""
    assert 37 < SLIDING_WINDOW < 100
    states, expected = gemma_hidden_states(model, prompt(n)), written_out(model.state_dict(), prompt(n))
    for index in range(LAYERS + 1):
        assert (states[..., index] - expected[index]).abs().max() < TOLERANCE, index
    # Every state differs from its neighbours, so that none can stand for another
    assert (states[..., 1:] - states[..., :-1]).abs().amax((0, 1)).min() > 0.1


def test_states_are_kept_by_no_hook(model: nn.Module) -> None:
    gemma_hidden_states(model, prompt(3))
    assert not any(module._forward_pre_hooks for module in model.modules())


def written_out(weights: dict[str, Tensor], ids: Tensor) -> list[Tensor]:
    """Gemma 3 (arXiv 2503.19786) for one prompt, with the settings of the tiny model; (n, D) per state."""
    x = weights["embed_tokens.weight"][ids] * math.sqrt(WIDTH)
    states = [x]
    for i in range(LAYERS):
        layer = {
            name.removeprefix(f"layers.{i}.").removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(f"layers.{i}.")
        }
        h = attend(layer, norm(x, layer["input_layernorm"]), is_global=i % 2 == 1)
        x = x + norm(h, layer["post_attention_layernorm"])
        h = norm(x, layer["pre_feedforward_layernorm"])
        h = F.gelu(h @ layer["mlp.gate_proj"].T, approximate="tanh") * (h @ layer["mlp.up_proj"].T)
        x = x + norm(h @ layer["mlp.down_proj"].T, layer["post_feedforward_layernorm"])
        states.append(x)
    states[-1] = norm(x, weights["norm.weight"])
    return states


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + weight)


def attend(layer: dict[str, Tensor], x: Tensor, is_global: bool) -> Tensor:
    n = len(x)
    q, k, v = ((x @ layer[f"self_attn.{s}_proj"].T).unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1) for s in "qkv")
    theta, factor = (1e6, 8.0) if is_global else (1e4, 1.0)
    q = rotate(norm(q, layer["self_attn.q_norm"]), theta, factor)
    k = rotate(norm(k, layer["self_attn.k_norm"]), theta, factor)
    k, v = (each.repeat_interleave(len(q) // len(k), dim=0) for each in (k, v))  # grouped queries
    back = torch.arange(n)[:, None] - torch.arange(n)[None]
    hidden = (back < 0) | (back >= (n if is_global else SLIDING_WINDOW))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(HEAD_DIM)).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ layer["self_attn.o_proj"].T


def rotate(x: Tensor, theta: float, factor: float) -> Tensor:
    frequencies = theta ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM) / factor
    angles = torch.arange(x.shape[1])[:, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
