from __future__ import annotations

from typing import Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import tiny_config
from ltx2_two_stage.ltx2_core.loading.synthetic_weights import fill_random_
from ltx2_two_stage.ltx2_core.models.video_vae import VideoDecoder, VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.video_vae.layers import Carry, SpaceTimeConv
from torch import Tensor

# The same sums, which the convolutions order in another way for pieces of another size.
TOLERANCE = 1e-5


def build(variant: Literal["2.0", "2.3"]) -> VideoDecoder:
    with torch.device("meta"):
        module = VideoDecoder(VideoVAEConfig.from_metadata(tiny_config(variant)))
    return fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()  # type: ignore[return-value]


DECODERS = {"2.0": build("2.0"), "2.3": build("2.3")}  # reflect and residual; zeros and every kind of upsampling
VARIANTS = pytest.mark.parametrize("variant", list(DECODERS))


def noise(frames: int, height: int = 2, width: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


@VARIANTS
@pytest.mark.parametrize("frames", [1, 2, 3, 16])
@pytest.mark.parametrize("frames_per_pass", [1, 2, 5, 16, 1000])
def test_a_stream_equals_one_pass(variant: str, frames: int, frames_per_pass: int) -> None:
    decoder, latent = DECODERS[variant], noise(frames, batch=2)
    expected = decoder.decode(latent)
    assert expected.shape == (2, 3, 8 * frames - 7, 64, 96)
    assert expected.std() > 0.3
    chunks = list(decoder.decode_streamed(latent, frames_per_pass=frames_per_pass))
    assert all(0 < chunk.shape[2] <= frames_per_pass + 1 for chunk in chunks)
    torch.testing.assert_close(torch.cat(chunks, dim=2), expected, atol=TOLERANCE, rtol=0)


@VARIANTS
def test_a_stream_remembers_an_amount_that_does_not_grow_with_the_clip(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    carries: list[Carry] = []
    monkeypatch.setattr(
        "ltx2_two_stage.ltx2_core.models.video_vae.decoder.Carry",
        lambda **settings: carries.append(Carry(**settings)) or carries[-1],
    )

    def largest(frames: int) -> tuple[int, int]:
        """Elements that a stream remembers at most, and frames of the largest input to a convolution."""
        held, longest = 0, 0

        def look(_module: SpaceTimeConv, args: tuple[Tensor, Carry]) -> None:
            nonlocal longest
            longest = max(longest, args[0].shape[2])

        hooks = [m.register_forward_pre_hook(look) for m in decoder.modules() if isinstance(m, SpaceTimeConv)]
        for _ in decoder.decode_streamed(noise(frames), frames_per_pass=4):
            carry = carries[-1]
            skips = [tensor for parts in carry._skips.values() for tensor in parts]
            held = max(held, sum(tensor.numel() for tensor in [*carry._frames.values(), *skips]))
        for hook in hooks:
            hook.remove()
        return held, longest

    decoder = DECODERS[variant]
    short, long = largest(24), largest(40)  # the shorter one fills every layer
    assert long[0] == short[0]
    assert short[1] == long[1] <= 4 + 1  # a residual block's second convolution gets the frame its first was late with


def test_a_stream_is_lazy() -> None:
    decoder = DECODERS["2.3"]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = decoder.conv_out.register_forward_hook(count)
    next(iter(decoder.decode_streamed(noise(16), frames_per_pass=4)))
    hook.remove()
    assert calls == 1  # frames reach the file while later ones wait


@VARIANTS
def test_only_the_clips_own_ends_are_padded(variant: str) -> None:
    """A convolution fed frame by frame, against one with the frames repeated by hand."""
    torch.manual_seed(0)
    padding = DECODERS[variant].config.decoder_padding
    layer = SpaceTimeConv(4, 6, padding, causal=False)
    x = torch.randn(1, 4, 5, 6, 7)
    mode = "reflect" if padding == "reflect" else "constant"
    padded = torch.nn.functional.pad(torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2), (1, 1, 1, 1, 0, 0), mode=mode)
    expected = torch.nn.functional.conv3d(padded, layer.conv.weight, layer.conv.bias)
    carry, out = Carry(last=False), []
    with torch.no_grad():
        for t in range(5):
            carry.last = t == 4
            out.append(layer(x[:, :, t : t + 1], carry))
    assert [part.shape[2] for part in out] == [0, 1, 1, 1, 2]
    torch.testing.assert_close(torch.cat(out, 2), expected, atol=1e-6, rtol=0)


def test_statistics_are_undone_before_decoding() -> None:
    decoder, latent = DECODERS["2.3"], noise(2)
    plain = VideoDecoder(decoder.config)
    identity = {f"per_channel_statistics.{k}": v for k, v in plain.per_channel_statistics.state_dict().items()}
    plain.load_state_dict({**decoder.state_dict(), **identity})
    state = decoder.per_channel_statistics.state_dict()
    mean, std = (state[name].view(-1, 1, 1, 1) for name in ("mean-of-means", "std-of-means"))
    expected = plain.decode(latent * std + mean)
    torch.testing.assert_close(decoder.decode(latent), expected, atol=TOLERANCE, rtol=0)
    assert (plain.decode(latent) - expected).abs().max() > 0.1


@VARIANTS
def test_reduced_precision_stays_close_and_streams_alike(variant: str) -> None:
    decoder, latent = DECODERS[variant], noise(4)
    exact = decoder.decode(latent)
    with torch.device("meta"):
        half = VideoDecoder(decoder.config)
    half.load_state_dict({k: v.bfloat16() for k, v in decoder.state_dict().items()}, assign=True)
    rounded = torch.cat(list(half.decode_streamed(latent, frames_per_pass=4)), dim=2)
    assert rounded.dtype == torch.bfloat16
    # About fifteen bfloat16 layers of 0.4% rounding each.
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("variant", "latent", "problem"),
    [
        ("2.3", torch.zeros(1, 8, 1, 2, 2), "latent must be"),
        ("2.3", torch.zeros(16, 1, 2, 2), "latent must be"),
        ("2.3", torch.zeros(1, 16, 0, 2, 2), "latent must be"),
        ("2.0", torch.zeros(1, 16, 1, 1, 2), "at least 2 x 2"),
    ],
)
def test_other_latents_are_refused(variant: str, latent: Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        DECODERS[variant].decode(latent)
    with pytest.raises(ValueError, match=problem):
        next(DECODERS[variant].decode_streamed(latent))


def test_a_pass_has_at_least_one_frame() -> None:
    with pytest.raises(ValueError, match="frames_per_pass"):
        next(DECODERS["2.3"].decode_streamed(noise(1), frames_per_pass=0))


@VARIANTS
def test_the_smallest_latent_decodes(variant: str) -> None:
    cells = 2 if variant == "2.0" else 1
    assert DECODERS[variant].decode(noise(1, cells, cells)).shape == (1, 3, 1, 32 * cells, 32 * cells)
