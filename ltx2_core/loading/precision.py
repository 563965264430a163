"""Which linear layers of the transformer are in fp8."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ..errors import SettingError
from ..models.scaled_linear import MULTIPLE
from ..models.transformer.config import TransformerConfig
from ..types import PRECISIONS

AUTO, FP8, FULL = PRECISIONS

# Video's own layers and both audio-video attentions. Not audio's own: with its 126 tokens a product takes 12.7 us in
# fp8 and 9.2 in bf16 (one H200). Not the gates, whose few columns decide over whole heads
_WHERE = re.compile(r"transformer_blocks\.(\d+)\.(attn1|attn2|ff|audio_to_video_attn|video_to_audio_attn)\.(.+)")
_GATES = "to_gate_logits"


def check_precision(precision: str) -> None:
    """Raises :class:`SettingError` when there is no such precision."""
    if precision not in PRECISIONS:
        raise SettingError("precision", precision, "is no precision", f"Choose from: {', '.join(PRECISIONS)}.")


def quantisable(layers: Mapping[str, tuple[int, int]], config: TransformerConfig) -> frozenset[str]:
    """Layers of a transformer that may be quantised while they are read.

    These are the ones that cost most and bear it: of one size at least as wide as the video stream, the first and the
    last block, which are sensitive, left out.

    Args:
        layers: (out, in) of every linear layer by path.
    """
    return frozenset(path for path, shape in layers.items() if _is_quantisable(path, shape, config))


def _is_quantisable(path: str, shape: tuple[int, int], config: TransformerConfig) -> bool:
    match = _WHERE.fullmatch(path)
    if match is None or match[3] == _GATES or int(match[1]) in (0, config.num_layers - 1):
        return False
    return max(shape) >= config.video.width and all(size % MULTIPLE == 0 for size in shape)


def scaled_layers(
    precision: str, layers: Mapping[str, tuple[int, int]], stored: Collection[str], config: TransformerConfig
) -> frozenset[str]:
    """Layers of the loaded transformer that have fp8 weights.

    Args:
        stored: layers whose weights the file has in fp8. Such a file is not quantised further.
    """
    if precision == FULL:
        return frozenset()
    return quantisable(layers, config) if precision == FP8 and not stored else frozenset(stored)
