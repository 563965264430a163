"""The decoders' Triton kernels against their eager versions, in Triton's interpreter: the same arithmetic, no GPU."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels import frames, layout
from ltx2_two_stage.ltx2_core.kernels.convolution import in_order
from ltx2_two_stage.ltx2_core.kernels.frames import Edges
from ltx2_two_stage.ltx2_core.kernels.groups import normalised
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import tiny_config
from ltx2_two_stage.ltx2_core.loading.synthetic_weights import fill_random_
from ltx2_two_stage.ltx2_core.models.upsampler import LatentUpsampler, UpsamplerConfig, UpsamplerKind
from ltx2_two_stage.ltx2_core.models.video_vae import VideoDecoder, VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.vocoder import VocoderConfig, build_vocoder
from ltx2_two_stage.ltx2_core.models.vocoder.activation import AntiAliasedSnake
from torch import Tensor

# float32 sums in another order
TOLERANCE = 2e-6

One = Callable[[Callable[[], Any]], Any]
Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> One:
    """Runs a function with Triton's kernels."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn("the tests of the decoders' kernels did NOT run: Triton is not installed", stacklevel=1)
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("Triton compiles kernels here, or interprets them, not both: tests/gpu compares them")

    def run(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setenv("TRITON_INTERPRET", "1")
            return function()

    return run


@pytest.fixture
def both(interpreted: One) -> Both:
    """Runs a function with Triton's kernels, and with PyTorch's own."""

    def run(function: Callable[[], Any]) -> tuple[Any, Any]:
        fused = interpreted(function)
        with torch.no_grad():
            return fused, function()

    return run


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("eps", [None, 1e-8], ids=["copied", "activated"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize(
    ("batch", "channels", "length", "kept", "after", "keep"),
    [(1, 8, 3, 0, 0, 2), (2, 5, 1, 2, 1, 0), (1, 20, 4, 2, 0, 2), (2, 3, 1, 0, 0, 2), (1, 8, 5, 0, 1, 0)],
)
def test_window(
    both: Both,
    margin: int,
    eps: float | None,
    biased: bool,
    batch: int,
    channels: int,
    length: int,
    kept: int,
    after: int,
    keep: int,
) -> None:
    height, width = 3, 4
    x, bias = numbers(batch, channels, length, height, width), numbers(channels) if biased else None
    old = numbers(batch, channels, kept, height + 2 * margin, width + 2 * margin) if kept else None
    edges = Edges(kept or 1, after, margin)
    (found, rest), (expected, kept_on) = both(lambda: frames.window(x.clone(), bias, old, edges, eps, keep))
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative(found, expected) <= (0 if eps is None else TOLERANCE)
    if not keep:
        assert rest is None and kept_on is None
        return
    assert torch.equal(rest, found[:, :, -keep:])
    assert rest.shape == kept_on.shape


@pytest.mark.parametrize("order", [channels_last, Tensor.contiguous], ids=["channels-last", "channels-first"])
def test_window_of_a_part_of_a_clip(both: Both, order: Callable[[Tensor], Tensor]) -> None:
    """Frames in the middle of a longer tensor, whose batch items do not follow each other."""
    x = order(numbers(2, 6, 5, 3, 4))[:, :, 1:4]
    (found, _), (expected, _) = both(lambda: frames.window(x, None, None, Edges(1, 1, 1), 1e-8, 2))
    assert relative(found, expected) <= TOLERANCE


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("order", [channels_last, Tensor.contiguous], ids=["channels-last", "channels-first"])
def test_add_into_a_part_of_a_clip(both: Both, repeats: int, biased: bool, order: Callable[[Tensor], Tensor]) -> None:
    out, skip = order(numbers(2, 6 * repeats, 5, 3, 4)), order(numbers(2, 6, 7, 3, 4))[:, :, 3:5]
    bias = numbers(6 * repeats) if biased else None

    def add() -> Tensor:
        clip = out.clone()
        frames.add_(clip[:, :, 2:4], bias, skip)
        return clip

    found, expected = both(add)
    assert relative(found, expected) <= TOLERANCE
    assert torch.equal(found[:, :, :2], out[:, :, :2]) and torch.equal(found[:, :, 4:], out[:, :, 4:])


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("dropped", [0, 1])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
def test_unfold(both: Both, stride: tuple[int, int, int], dropped: int, biased: bool) -> None:
    cells = stride[0] * stride[1] * stride[2]
    x, bias = numbers(2, 5 * cells, 3, 2, 3), numbers(5 * cells) if biased else None
    found, expected = both(lambda: layout.unfold(x.clone(), bias, stride, dropped))
    assert torch.equal(found, expected)


def test_unfold_nothing(both: Both) -> None:
    found, expected = both(lambda: layout.unfold(numbers(1, 16, 0, 2, 3), numbers(16), (2, 2, 2), 0))
    assert found.shape == expected.shape == (1, 2, 0, 4, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_to_bytes(both: Both, dtype: torch.dtype) -> None:
    x, bias = numbers(2, 48, 2, 3, 5).to(dtype), numbers(48).to(dtype)
    found, expected = both(lambda: layout.to_bytes(channels_last(x), bias, 4))
    assert found.shape == (2, 12, 20, 3)
    # The interpreter rounds to bfloat16 in a way of its own; on a GPU both are equal (tests/gpu/test_decode_kernels.py)
    assert (found.int() - expected.int()).abs().max() <= (0 if dtype == torch.float32 else 1)
    assert len(expected.unique()) > 100


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize(
    ("channels", "length"), [(3, 1), (3, 5), (2, 40), (1, 1018), (2, 1019), (1, 2050), (32, 58), (40, 59), (16, 250)]
)
def test_anti_aliased_snake(both: Both, channels: int, length: int, biased: bool) -> None:
    module = AntiAliasedSnake(channels)
    with torch.no_grad():
        module.act.alpha.copy_(numbers(channels))
        module.act.beta.copy_(numbers(channels + 1)[1:])
    bias = numbers(channels + 2)[2:] if biased else None
    found, expected = both(lambda: module(numbers(2, channels, length), bias))
    # Large amplitudes magnify what the argument of the sine is off by
    assert relative(found, expected) <= 2 * TOLERANCE
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_a_whole_vocoder(both: Both, variant: str) -> None:
    config = VocoderConfig.from_metadata(tiny_config(variant))  # type: ignore[arg-type]
    with torch.device("meta"):
        module = build_vocoder(config)
    vocoder: Any = fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()
    mel = numbers(1, 2, 2, config.generator.mel_bins)
    with torch.no_grad():
        eager = vocoder(mel)
    found, afterwards = both(lambda: vocoder(mel))
    assert relative(found, eager) <= 10 * TOLERANCE
    # Weights that were put in order serve the eager kernels too
    assert relative(afterwards, eager) <= 10 * TOLERANCE


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_a_whole_stream(both: Both, variant: str) -> None:
    with torch.device("meta"):
        module = VideoDecoder(VideoVAEConfig.from_metadata(tiny_config(variant)))  # type: ignore[arg-type]
    decoder: Any = fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()
    latent = numbers(1, 16, 2, 2, 2)
    found, expected = both(lambda: torch.cat(list(decoder.decode_frames(latent, 5))))
    assert found.shape == (9, 64, 64, 3)
    # Truncation turns a rounding difference into a whole level where a pixel lies on a border
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


@pytest.mark.parametrize("inference", [False, True], ids=["", "made in inference mode"])
@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 3, 3), (4, 6, 3, 3, 3)], ids=len)
def test_weights_are_put_in_order_once(both: Both, shape: tuple[int, ...], inference: bool) -> None:
    """The object stays, what shares its old memory stays as it was, and eager kernels get what the file has."""
    with torch.inference_mode(inference):
        weight = torch.nn.Parameter(numbers(*shape), requires_grad=False)
    values, sharing = weight.clone(), weight.detach()
    order = sharing.stride()
    assert in_order(weight).stride() == order
    addresses = []

    def use() -> None:
        assert in_order(weight) is weight
        assert torch.equal(weight, values) and torch.equal(sharing, values)
        addresses.append(weight.data_ptr())

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            both(use)
    assert weight.movedim(1, -1).is_contiguous() and sharing.stride() == order
    assert len({*addresses, sharing.data_ptr()}) == 2


@pytest.mark.parametrize(
    ("batch", "channels", "groups", "size", "bounds"),
    [
        (2, 24, 8, (2, 3, 5), {}),
        (1, 8, 2, (1, 1, 1), {}),
        (2, 64, 2, (3, 7, 13), {}),
        # 8 rows are joined at a time, as 256 of 4,096 channels each are
        (1, 16, 1, (3, 2, 5), {"TILE": 16, "JOINED": 8}),
    ],
    ids=["one stretch", "one row", "several", "more than are joined"],
)
@pytest.mark.parametrize("skipped", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("order", [channels_last, Tensor.contiguous], ids=["channels-last", "channels-first"])
def test_group_norm(
    interpreted: One,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    channels: int,
    groups: int,
    size: tuple[int, int, int],
    bounds: dict[str, int],
    skipped: bool,
    order: Callable[[Tensor], Tensor],
) -> None:
    """Of one stretch of rows, of several of which the last is shorter, and of more than are joined at a time."""
    x, skip = order(numbers(batch, channels, *size)) + 5.0, order(numbers(batch, channels, *size) * 2)
    bias, weight, shift = numbers(channels), numbers(channels + 1)[1:], numbers(channels + 2)[2:]
    out = x.double() + bias.view(-1, 1, 1, 1)
    out = torch.nn.functional.group_norm(out, groups, weight.double(), shift.double(), 1e-5) + (skip if skipped else 0)
    expected = torch.nn.functional.silu(out)

    def fused() -> Tensor:
        from ltx2_two_stage.ltx2_core.kernels.triton import groups as kernels

        for name, bound in bounds.items():
            monkeypatch.setattr(kernels, name, bound)
        return normalised(x.clone(), bias, groups, weight, shift, 1e-5, skip if skipped else None)

    found = interpreted(fused)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative(found, expected) <= 2 * TOLERANCE


@pytest.mark.parametrize("kind", list(UpsamplerKind))
def test_a_whole_upsampler(both: Both, kind: UpsamplerKind) -> None:
    with torch.device("meta"):
        module = LatentUpsampler(UpsamplerConfig(kind, 16, 64, 1))
    upsampler: Any = fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()
    # The interpreter's time grows with the items: one kind has several
    latent = numbers(2 if kind is UpsamplerKind.X2_RATIONAL else 1, 16, 2, 3, 4)
    eager = upsampler(latent)
    found, afterwards = both(lambda: upsampler(latent))
    assert found.is_contiguous()
    assert relative(found, eager) <= 3 * TOLERANCE
    # Weights that were put in order serve the eager kernels too
    assert relative(afterwards, eager) <= TOLERANCE
