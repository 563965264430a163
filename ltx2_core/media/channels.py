"""More than two channels mixed down to stereo, for files and for ComfyUI's AUDIO alike.

The weights are those of ITU-R BS.775: the centre on both sides and the surrounds on theirs, at -3 dB. The low
frequency channel is left out, as players do. The sum is divided by the larger side's weights, so that channels within
full scale stay there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["MOST_CHANNELS", "mixed_down"]

MOST_CHANNELS = 64  # what the layouts of films have at most is 24
_SHARE = 0.5**0.5  # -3 dB
_BOTH = (_SHARE, _SHARE)
_WEIGHTS = {
    **dict.fromkeys(("FL", "DL", "BIL", "FLC"), (1.0, 0.0)),
    **dict.fromkeys(("FR", "DR", "BIR", "FRC"), (0.0, 1.0)),
    **dict.fromkeys(("FC", "TFC", "BFC"), _BOTH),
    **dict.fromkeys(("BC", "TC", "TBC"), (0.5, 0.5)),
    **dict.fromkeys(("LFE", "LFE2"), (0.0, 0.0)),
}
# FFmpeg's order for a bare number of channels, but for three: it would take a centre for a low frequency channel
_ORDERS: dict[int, tuple[str, ...]] = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "FC", "BC"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def mixed_down(waveform: Tensor, names: Sequence[str] = ()) -> Tensor:
    """(channels, N) as it is for one or two channels, as (2, N) for more.

    Args:
        names: FFmpeg's short names of the channels (``FL``, ``LFE``). Where they are not known, three to eight
            channels are in FFmpeg's order, and of more every channel is heard on both sides alike.
    """
    channels = waveform.shape[0]
    if channels <= 2:
        return waveform
    weights = torch.tensor([_weight(name) for name in _order(channels, names)], dtype=torch.float32).T
    weights /= weights.sum(dim=1).max()
    return weights.to(waveform.device) @ waveform.float()


def _order(channels: int, names: Sequence[str]) -> Sequence[str]:
    known = len(names) == channels and len(set(names)) == channels
    return names if known else _ORDERS.get(channels, ("FC",) * channels)


def _weight(name: str) -> tuple[float, float]:
    """(left, right); a name ends with its side."""
    if name in _WEIGHTS:
        return _WEIGHTS[name]
    return {"L": (_SHARE, 0.0), "R": (0.0, _SHARE)}.get(name[-1:], _BOTH)
