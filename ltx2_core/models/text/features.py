"""From the text encoder's stacked states to one feature row per token (docs/model.md 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import TextConfig

EPS = 1e-6
RANGE_SCALE = 8.0  # width of the interval that the 2.0 norm maps a prompt's values to

# Normalised states of all tokens at once would be a second and third copy of up to 770 MB (1024 tokens of the released
# size in float32); a chunk of 128 is below 100 MB and still fills a matrix product.
TOKENS_AT_ONCE = 128


class SharedProjection(nn.Module):
    """2.0: every state is normed over the whole prompt, one projection serves both streams."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.aggregate_embed = nn.Linear(config.text_width * config.num_states, config.text_width, bias=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D, L) -> (n, D) for video and for audio."""
        tokens, width, _ = states.shape
        # The official dtypes: sum and range are rounded to the model's, the quotients are float32.
        mean = states.sum(dim=(0, 1)).float() / (tokens * width + EPS)
        spread = (states.amax(dim=(0, 1)) - states.amin(dim=(0, 1)) + EPS).float()
        features = torch.cat(
            [
                self.aggregate_embed((RANGE_SCALE * (chunk - mean) / spread).to(states.dtype).flatten(1))
                for chunk in torch.split(states, TOKENS_AT_ONCE)
            ]
        )
        return features, features


class StreamProjections(nn.Module):
    """2.3: every state is normed per token, each stream has its projection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        inputs = config.text_width * config.num_states
        self.video_aggregate_embed = nn.Linear(inputs, config.video.width)
        self.audio_aggregate_embed = nn.Linear(inputs, config.audio.width)
        # The projections expect inputs whose norm grows with their output's width
        self.video_scale = math.sqrt(config.video.width / config.text_width)
        self.audio_scale = math.sqrt(config.audio.width / config.text_width)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D, L) -> (n, Dv) and (n, Da)."""
        video, audio = [], []
        for chunk in torch.split(states, TOKENS_AT_ONCE):
            normed = (chunk * torch.rsqrt((chunk**2).mean(dim=1, keepdim=True) + EPS)).flatten(1)
            video.append(self.video_aggregate_embed(normed * self.video_scale))
            audio.append(self.audio_aggregate_embed(normed * self.audio_scale))
        return torch.cat(video), torch.cat(audio)
