from __future__ import annotations

import pytest
import torch
from ltx2_two_stage.ltx2_core.models.video_vae.layout import (
    Stride,
    depth_to_space,
    patchify,
    space_to_depth,
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
