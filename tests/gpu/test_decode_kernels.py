"""The decoders' Triton kernels on a GPU, in bfloat16, against exact arithmetic and against PyTorch's own kernels."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels import availability, frames, layout
from ltx2_two_stage.ltx2_core.kernels.frames import Edges
from ltx2_two_stage.ltx2_core.kernels.groups import normalised
from ltx2_two_stage.ltx2_core.loading.synthetic import fill_random_, tiny_config
from ltx2_two_stage.ltx2_core.models.repeatable import RepeatableConvolutions
from ltx2_two_stage.ltx2_core.models.upsampler import LatentUpsampler, UpsamplerConfig, UpsamplerKind
from ltx2_two_stage.ltx2_core.models.video_vae import VideoDecoder, VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.vocoder import VocoderConfig, build_vocoder
from ltx2_two_stage.ltx2_core.models.vocoder.activation import AntiAliasedSnake
from ltx2_two_stage.ltx2_core.stages import decode
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]

# A fused kernel rounds once where the eager one rounds after every step; both errors are about 2e-3 in bfloat16.
A_LITTLE = 2e-4


@contextmanager
def eager() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(availability.VARIABLE, "eager")
        availability._wanted.cache_clear()
        yield
    availability._wanted.cache_clear()


def numbers(cuda: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device=cuda, dtype=dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def three(function: Callable[[torch.dtype], Any]) -> tuple[Any, Any, Any]:
    """Fused in bfloat16, eager in bfloat16, eager in float32."""
    fused = function(torch.bfloat16)
    with eager():
        return fused, function(torch.bfloat16), function(torch.float32)


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("channels", [48, 128, 256, 512, 1024])
@pytest.mark.parametrize("kept", [0, 2])
def test_window(cuda: torch.device, margin: int, channels: int, kept: int) -> None:
    x, bias = numbers(cuda, 1, channels, 5, 9, 14), numbers(cuda, channels)
    old = numbers(cuda, 1, channels, kept, 9 + 2 * margin, 14 + 2 * margin) if kept else None
    edges = Edges(kept or 1, 1, margin)

    def run(dtype: torch.dtype) -> Tensor:
        before = None if old is None else channels_last(old.to(dtype))
        fresh = channels_last(x).to(dtype, copy=True)
        return frames.window(fresh, bias.to(dtype), before, edges, 1e-8, 2)[0]

    fused, plain, exact = three(run)
    assert error(fused, exact) <= error(plain, exact) + A_LITTLE


def test_skip_connection(cuda: torch.device) -> None:
    out, skip, bias = numbers(cuda, 1, 512, 4, 9, 14), numbers(cuda, 1, 128, 4, 9, 14), numbers(cuda, 512)

    def run(dtype: torch.dtype) -> Tensor:
        result = channels_last(out).to(dtype, copy=True)
        frames.add_(result, bias.to(dtype), channels_last(skip).to(dtype))
        return result

    fused, plain, exact = three(run)
    assert error(fused, exact) <= error(plain, exact) + A_LITTLE


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2)], ids=str)
def test_unfold_and_bytes(cuda: torch.device, stride: tuple[int, int, int]) -> None:
    """Moves, and one rounding: equal to the bit."""
    x, bias = channels_last(numbers(cuda, 1, 1024, 3, 8, 12)), numbers(cuda, 1024)
    found = layout.unfold(x, bias, stride, 1)
    with eager():
        assert torch.equal(found, layout.unfold(x.clone(), bias, stride, 1))
    x, bias = channels_last(numbers(cuda, 1, 48, 3, 8, 12)), numbers(cuda, 48)
    found = layout.to_bytes(x, bias, 4)
    with eager():
        assert torch.equal(found, layout.to_bytes(x.clone(), bias, 4))


@pytest.mark.parametrize("channels", [64, 512, 1024])
@pytest.mark.parametrize("skipped", [False, True], ids=["", "skip"])
def test_group_norm(cuda: torch.device, channels: int, skipped: bool) -> None:
    shape = 2, channels, 3, 17, 24
    x, skip = channels_last(numbers(cuda, *shape)), channels_last(numbers(cuda, *shape) * 2)
    bias, weight, shift = (numbers(cuda, channels + more)[more:] for more in range(3))

    def run(dtype: torch.dtype) -> Tensor:
        out = x.to(dtype) + bias.to(dtype).view(-1, 1, 1, 1)
        out = torch.nn.functional.group_norm(out, 32, weight.to(dtype), shift.to(dtype), 1e-5)
        return torch.nn.functional.silu(out + skip.to(dtype) if skipped else out)

    found = normalised(x.clone(), bias, 32, weight, shift, 1e-5, skip if skipped else None)
    assert torch.equal(found, normalised(x.clone(), bias, 32, weight, shift, 1e-5, skip if skipped else None))
    exact = run(torch.float64)
    assert error(found, exact) <= error(run(torch.bfloat16), exact) + A_LITTLE


@pytest.mark.parametrize("kind", list(UpsamplerKind))
@torch.no_grad()
def test_a_whole_upsampler(cuda: torch.device, kind: UpsamplerKind) -> None:
    with torch.device("meta"):
        module = LatentUpsampler(UpsamplerConfig(kind, 16, 64, 2))
    exact: Any = fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()
    with torch.device("meta"):
        rounded: Any = LatentUpsampler(exact.config)
    rounded = rounded.to(torch.bfloat16).to_empty(device=cuda).requires_grad_(False)
    rounded.load_state_dict(exact.state_dict())
    latent = numbers(cuda, 1, 16, 5, 6, 9)
    wanted = exact(latent.cpu().float()).to(cuda)
    with eager():
        plain = error(rounded(latent), wanted)
    found = rounded(latent)
    assert found.is_contiguous() and torch.equal(found, rounded(latent))
    assert error(found, wanted) <= 1.1 * plain


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize(("channels", "length"), [(3, 1), (24, 5000), (7, 1018), (2, 4097), (768, 130)])
def test_anti_aliased_snake(cuda: torch.device, channels: int, length: int, biased: bool) -> None:
    module = AntiAliasedSnake(channels).to(cuda)
    with torch.no_grad():
        module.act.alpha.copy_(numbers(cuda, channels))
        module.act.beta.copy_(numbers(cuda, channels + 1)[1:])
        x = numbers(cuda, 1, channels, length, dtype=torch.float32)
        bias = numbers(cuda, channels + 2, dtype=torch.float32)[2:] if biased else None
        found = module(x, bias)
        with eager():
            expected = module(x, bias)
            exact = module.double()(x.double(), None if bias is None else bias.double())
    assert error(found, exact) <= error(expected, exact) + 2e-6


@torch.no_grad()
def test_a_whole_vocoder(cuda: torch.device) -> None:
    """The same sound each time, and as good as that of PyTorch's own kernels, which round to TF32 as well."""
    config = VocoderConfig.from_metadata(tiny_config("2.3"))
    with torch.device("meta"):
        module = build_vocoder(config)
    vocoder: Any = fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()
    mel = numbers(cuda, 1, 2, 40, config.generator.mel_bins, dtype=torch.float32)
    exact = copy.deepcopy(vocoder).double()(mel.cpu().double()).to(cuda)
    vocoder.to(cuda)
    with RepeatableConvolutions():
        with eager():
            plain = error(vocoder(mel), exact)
        found = vocoder(mel)
        assert torch.equal(found, vocoder(mel))
    assert error(found, exact) <= 1.5 * plain + 1e-4


def test_the_device_decodes_while_the_sink_works(cuda: torch.device) -> None:
    """The device has the work of the next piece, and is not done with it, when the sink gets one."""
    nap, count = 0.5, 3  # the host has half a second to look while a piece is being made
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10_000_000)  # the first one is slow
    begin.record()
    torch.cuda._sleep(10_000_000)
    end.record()
    end.synchronize()
    cycles = int(10_000_000 * nap * 1000 / begin.elapsed_time(end))

    made: list[torch.cuda.Event] = []

    def pieces() -> Iterator[Tensor]:
        for index in range(count):
            torch.cuda._sleep(cycles)
            made.append(torch.cuda.current_stream(cuda).record_event())
            yield torch.full((1, 8, 8, 3), index, dtype=torch.uint8, device=cuda)

    for index, piece in enumerate(decode._on_host(pieces(), cuda)):
        done = [event.query() for event in made]
        assert done == [True] * (index + 1) + [False] * (index + 1 < count)
        assert piece.device.type == "cpu" and piece.unique().tolist() == [index]


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@torch.no_grad()
def test_a_whole_decode(cuda: torch.device, variant: Any) -> None:
    """Frames through the copies that overlap with decoding: as good as the eager ones, and the same each time."""
    with torch.device("meta"):
        module = VideoDecoder(VideoVAEConfig.from_metadata(tiny_config(variant)))
    exact: Any = fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()
    rounded: Any = VideoDecoder(exact.config).to(torch.bfloat16).to(cuda).requires_grad_(False)
    rounded.load_state_dict(exact.state_dict())
    latent = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat(list(exact.decode_frames(latent, 5))).int()

    def mean_difference() -> float:
        pieces = list(decode._on_host(rounded.decode_frames(latent.to(cuda, torch.bfloat16), 5), cuda))
        assert len(pieces) > 3 and all(piece.device.type == "cpu" for piece in pieces)
        return float((torch.cat(pieces).int() - wanted).abs().float().mean())

    fused = mean_difference()
    assert fused == mean_difference()
    with eager():
        assert fused <= 1.1 * mean_difference()
