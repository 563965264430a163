"""Pixels to latent."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ...errors import SettingError
from ...kernels.layout import patchify
from .config import PIXEL_CHANNELS, VideoVAEConfig
from .layers import Carry, SpaceTimeConv, down_block
from .statistics import LatentStatistics

log = logging.getLogger("ltx2.video_vae")


class VideoEncoder(nn.Module):
    """The encoder half of the video autoencoder (docs/model.md 7.1); every latent frame depends on the past only.

    State-dict keys are those of the checkpoint after ``vae.encoder.``, plus ``per_channel_statistics.*``.
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        padding = config.encoder_padding
        self.per_channel_statistics = LatentStatistics(config.latent_channels)
        self.conv_in = SpaceTimeConv(config.patch_channels, config.encoder_channels, padding, causal=True)
        self.down_blocks = nn.ModuleList(down_block(stage, padding) for stage in config.encoder_stages)
        # One more channel than the latent has: a log-variance shared by all, which inference ignores.
        self.conv_out = SpaceTimeConv(
            config.encoder_out_channels, config.latent_channels + 1, padding, causal=True, activated=True
        )

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encodes frames; the distribution's mean is taken, nothing is drawn.

        Args:
            pixels: (B, 3, F, H, W) in [-1, 1]. Frames that exceed ``time * k + 1`` are cropped at the end, as the
                official encoder does.

        Returns:
            Normalised latent (B, latent_channels, k + 1, H / height, W / width) in the weights' dtype.

        Raises:
            SettingError: height or width is no multiple of the scale, or too small for the edge padding.
            ValueError: ``pixels`` has another number of axes or channels, or no frame.
        """
        if pixels.ndim != 5 or pixels.shape[1] != PIXEL_CHANNELS or not pixels.shape[2]:
            raise ValueError(f"pixels must be (B, {PIXEL_CHANNELS}, F, H, W), got {tuple(pixels.shape)}")
        scale = self.config.scale
        for name, size, cell in zip(("height", "width"), pixels.shape[3:], scale[1:], strict=True):
            if size % cell or not size:
                lower = max(cell, size // cell * cell)
                raise SettingError(name, size, f"must be a multiple of {cell}", f"Use {lower} or {lower + cell}.")
            if self.config.encoder_padding == "reflect" and size < 2 * cell:
                raise SettingError(name, size, "is too small, this encoder needs two latent cells", f"Use {2 * cell}.")
        if extra := (pixels.shape[2] - 1) % scale.time:
            log.warning("encoding %d frames without the last %d", pixels.shape[2], extra)
            pixels = pixels[:, :, :-extra]
        carry = Carry()
        dtype = self.conv_in.conv.weight.dtype
        x = self.conv_in(patchify(pixels.to(dtype), self.config.patch_size), carry)
        for block in self.down_blocks:
            x = block(x, carry)
        means = self.conv_out(x, carry)[:, : self.config.latent_channels]
        return self.per_channel_statistics.normalise(means).to(dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels)
