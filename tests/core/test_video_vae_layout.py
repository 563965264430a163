from __future__ import annotations

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels.layout import (
    Stride,
    depth_to_space,
    patchify,
    space_to_depth,
    to_bytes,
    to_pixels,
    unpatchify,
)


@pytest.mark.parametrize("stride", [(2, 1, 1), (1, 2, 2), (2, 2, 2), (1, 3, 3)])
def test_fine_offsets_become_channels_with_the_width_fastest(stride: Stride) -> None:
    x = torch.randn(2, 3, 2 * stride[0], 4 * stride[1], 5 * stride[2])
    folded = space_to_depth(x, stride)
    for c in range(3):
        for t in range(stride[0]):
            for i in range(stride[1]):
                for j in range(stride[2]):
                    channel = ((c * stride[0] + t) * stride[1] + i) * stride[2] + j
                    expected = x[:, c, t :: stride[0], i :: stride[1], j :: stride[2]]
                    assert torch.equal(folded[:, channel], expected)
    assert torch.equal(depth_to_space(folded, stride), x)


def test_patches_have_the_width_offset_as_the_slower_index() -> None:
    pixels = torch.randn(2, 3, 2, 8, 12)
    patches = patchify(pixels, 4)
    for c in range(3):
        for x in range(4):
            for y in range(4):
                assert torch.equal(patches[:, c * 16 + x * 4 + y], pixels[:, c, :, y::4, x::4])
    assert torch.equal(unpatchify(patches, 4), pixels)


def test_bytes_are_truncated_and_clipped() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    pixels = values[None, None, None, None].expand(1, 3, 2, 1, 6).clone()
    pixels[0, 1] = -1
    out = to_bytes(pixels, torch.zeros(3), 1)
    assert out.shape == (2, 1, 6, 3) and out.dtype == torch.uint8 and out.is_contiguous()
    assert out[1, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]  # 127.5 and 254.87 truncated
    assert out[..., 1].eq(0).all()


def test_bytes_are_those_of_the_pixels_with_their_bias() -> None:
    x, bias = torch.randn(2, 48, 3, 2, 5), torch.randn(48)
    pixels = to_pixels(x.clone(), bias, 4)
    assert torch.equal(pixels, unpatchify(x + bias.view(-1, 1, 1, 1), 4))
    expected = ((pixels[0].clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    assert torch.equal(to_bytes(x, bias, 4), expected.permute(1, 2, 3, 0))
