"""Triton's kernels against their eager versions, in Triton's interpreter: the same arithmetic, without a GPU."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels import heads, modulation
from ltx2_two_stage.ltx2_core.kernels.activation import Activation, Needs
from ltx2_two_stage.ltx2_core.kernels.gelu import gelu
from ltx2_two_stage.ltx2_core.kernels.quantise import Quantised, quantise_rows
from ltx2_two_stage.ltx2_core.kernels.rope import rotate
from ltx2_two_stage.ltx2_core.kernels.rows import Affine, Row
from ltx2_two_stage.ltx2_core.kernels.scaled_merge import can_merge, merge_rows
from ltx2_two_stage.ltx2_core.types import Rope
from tiny_stage import build_stage, standard_guidance, tiny_transformer
from torch import Tensor

# float32 sums in another order
TOLERANCE = 2e-6
B, T, D = 3, 5, 64

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels serve CPU tensors inside."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn("the tests of fused kernels did NOT run: Triton is not installed", stacklevel=1)
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def row(row: int, at: int, levels: int, batch: int, indexed: bool, rows: int = 4) -> Row:
    vectors = numbers(batch, levels, rows, D)
    index = torch.arange(T) % levels if indexed else None
    return Row(numbers(rows + 1, D), row, vectors, at, index)


KINDS = {
    "one level": (1, 1, False),
    "one level per item": (1, B, False),
    "a level per token": (T, 1, False),
    "a level per token and item": (T, B, False),
    "few levels": (2, 1, True),
    "few levels per item": (2, B, True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [0, 1, 2])
@pytest.mark.parametrize("updated", [slice(None), slice(0, 2), slice(1, 3)], ids=str)
def test_residual_norm(monkeypatch: pytest.MonkeyPatch, kind: str, outputs: int, updated: slice) -> None:
    x, gate = numbers(B, T, D), row(3, 2, *KINDS[kind])
    update = numbers(B, T, D)[updated]
    base = row(0, 0, *KINDS[kind])
    affines = [
        Affine(base._replace(row=1, at=0), base._replace(row=0, at=1)),
        Affine(base._replace(row=2, at=3), base._replace(row=3, at=2)),
    ][:outputs]
    needs = [Needs()] * outputs
    found = modulation.residual_norm(x, update, gate, affines, 1e-6, needs, updated)
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = modulation.residual_norm(x, update, gate, affines, 1e-6, needs, updated)
    assert relative(found[0], expected[0]) < TOLERANCE
    for one, other in zip(found[1], expected[1], strict=True):
        assert one.plain is not None
        assert other.plain is not None
        assert relative(one.plain, other.plain) < TOLERANCE


def test_residual_norm_without_gate_or_modulation(monkeypatch: pytest.MonkeyPatch) -> None:
    x, update = numbers(B, T, D), numbers(B, T, D) + 1
    found = modulation.residual_norm(x, update, None, [None], 1e-6, [Needs()])
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = modulation.residual_norm(x, update, None, [None], 1e-6, [Needs()])
    assert relative(found[0], expected[0]) < TOLERANCE
    assert relative(found[1][0].plain, expected[1][0].plain) < TOLERANCE  # type: ignore[arg-type]


def test_many_rows_share_the_modulation(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltx2_two_stage.ltx2_core.kernels.triton import modulation as kernel

    monkeypatch.setattr(kernel, "MANY_ROWS", 1)
    x, base = numbers(B, T, D), row(0, 0, 1, 1, False)
    affine = Affine(base, base._replace(row=2, at=1))
    found = modulation.residual_norm(x, x + 1, base, [affine], 1e-6, [Needs()])
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = modulation.residual_norm(x, x + 1, base, [affine], 1e-6, [Needs()])
    assert relative(found[0], expected[0]) < TOLERANCE
    assert relative(found[1][0].plain, expected[1][0].plain) < TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_modulate(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    x, base = numbers(B, T, D), row(0, 0, *KINDS[kind])
    affine = Affine(base, base._replace(row=2, at=1))
    found = modulation.modulate(x, affine, Needs()).plain
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = modulation.modulate(x, affine, Needs()).plain
    assert found is not None
    assert expected is not None
    assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize("tables", [1, B])
@pytest.mark.parametrize("pair", [False, True])
def test_norm_and_rope(tables: int, pair: bool) -> None:
    groups, half = 4, D // 8
    angles = numbers(tables, groups, T, half)
    rope = Rope(angles.cos(), angles.sin())
    x = tuple(numbers(B, T, D) * (number + 1) for number in range(2 if pair else 1))
    weights = tuple(1 + 0.1 * numbers(D) * number for number in range(len(x)))
    assert heads.can_norm_rope(x[0], rope)
    given = tuple(part.clone() for part in x)
    found = heads.norm_rope(given, weights, 1e-6, (rope,) * len(x), groups)
    for one, part, weight in zip(found, x, weights, strict=True):
        normed = torch.nn.functional.rms_norm(part, (D,), weight, 1e-6)
        expected = rotate(normed, rope, groups)
        assert relative(one, expected) < TOLERANCE


def test_norm_without_rope() -> None:
    x, weight = numbers(B, T, D), 1 + 0.1 * numbers(D)
    (found,) = heads.norm_rope((x.clone(),), (weight,), 1e-6, (None,), 1)
    assert relative(found[:, 0], torch.nn.functional.rms_norm(x, (D,), weight, 1e-6)) < TOLERANCE


def test_gates_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, logits = numbers(B, T, D), numbers(B, T, 4)
    found = heads.gate_heads(x.clone(), logits, 4, Needs()).plain
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = heads.gate_heads(x, logits, 4, Needs()).plain
    assert found is not None
    assert expected is not None
    assert relative(found, expected) < TOLERANCE


def test_what_does_not_fit_the_kernels_runs_eagerly() -> None:
    """Heads that are no power of two, and the interleaved rotary layout."""
    angles = numbers(1, 3, T, 8)
    assert not heads.can_norm_rope(numbers(B, T, 48), Rope(angles, angles))
    assert not heads.can_norm_rope(numbers(B, T, D), Rope(numbers(1, T, D), numbers(1, T, D)))
    x, logits = numbers(B, T, 48), numbers(B, T, 3)
    gated = heads.gate_heads(x, logits, 3, Needs()).plain
    expected = x.unflatten(-1, (3, -1)) * (2 * torch.sigmoid(logits))[..., None]
    torch.testing.assert_close(gated, expected.flatten(2), rtol=1e-6, atol=0)


BOTH = Needs(True, True)


@pytest.mark.parametrize("rows", [1, 4])
def test_results_in_fp8(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """What kernels write in fp8 is what the eager version quantises."""
    x, base = numbers(B, T, D), row(0, 0, 1, 1, False)
    affine = Affine(base, base._replace(row=2, at=1))

    def results() -> list[Quantised | None]:
        normed = modulation.residual_norm(x, x + 1, base, [affine, affine], 1e-6, [BOTH, BOTH])[1]
        gated = heads.gate_heads(x.clone(), numbers(B, T, 4), 4, BOTH)
        return [*(part.quantised for part in (*normed, gated)), gelu(x, Needs(False, True)).quantised]

    from ltx2_two_stage.ltx2_core.kernels.triton import modulation as kernel

    monkeypatch.setattr(kernel, "MANY_ROWS", 1 if rows == 4 else 10**6)
    found = results()
    monkeypatch.delenv("TRITON_INTERPRET")
    for one, other in zip(found, results(), strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.scales, other.scales, rtol=1e-5, atol=0)
        # The interpreter's own fp8 drops the carry into the exponent; tests/gpu compares every number
        assert float((one.values.float() != other.values.float()).float().mean()) < 0.05


@pytest.mark.parametrize("tokens", [3, 40])
def test_gates_of_fp8_tokens(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    layer = torch.nn.Linear(256, 16)
    x = Activation(None, quantise_rows(numbers(B, tokens, 256)))
    found = heads.gate_logits(x, layer)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert relative(found, heads.gate_logits(x, layer)) < TOLERANCE


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_a_guided_step(monkeypatch: pytest.MonkeyPatch, image: bool, generation: Literal["2.0", "2.3"]) -> None:
    """A whole step with four passes, of which one branches off and one leaves the exchange out."""
    # Two frames, of which the image is one, and a block before the one that the passes branch off at
    stage = build_stage(tiny_transformer(generation, 2), grid=(2, 1, 2), audio_frames=2, text_tokens=3)
    stage = stage.with_image() if image else stage
    found = stage.guided(standard_guidance(1))(stage.video, stage.audio, 0.7, 0)
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = stage.guided(standard_guidance(1))(stage.video, stage.audio, 0.7, 0)
    for one, other in zip(found, expected, strict=True):
        # Differences of almost equal passes are guided: their rounding grows with them
        assert 0 < relative(one, other) < 2e-5


@pytest.mark.parametrize("loras", [1, 2])
@pytest.mark.parametrize("width", [64, 80])
def test_merging_into_fp8_rows(width: int, loras: int) -> None:
    """Against the same sum in float64. The interpreter's conversion to fp8 drops carries: a few numbers are halved."""
    weight, scale = (part.clone() for part in quantise_rows(numbers(48, width)))
    scale = scale[:, 0].contiguous()
    changes = [(numbers(48, 4), numbers(4, width) / 8, 0.7 - index) for index in range(loras)]
    exact = weight.double() * scale[:, None] + sum(f * (up.double() @ down.double()) for up, down, f in changes)
    assert can_merge(weight, scale)
    merge_rows(weight, scale, changes)
    # The scales are float32 products and sums
    torch.testing.assert_close(scale.double(), exact.abs().amax(1) / 448, rtol=1e-6, atol=0)
    # Half a step of three bits of mantissa, but for the halved ones; below its normal numbers fp8's steps are even
    apart = (weight.double() * scale[:, None] - exact).abs() / exact.abs().clamp_min(float(scale.min()) * 2**-6)
    assert float(apart.quantile(0.9)) < 2**-4 and float(apart.max()) < 0.51
