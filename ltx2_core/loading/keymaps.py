"""Key names of official, split and community files, as tables (docs/model.md 1.2 and 9.3)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ..components import COMPONENTS
from ..types import Component


def component_keys(component: Component, keys: Collection[str]) -> dict[str, str]:
    """Names of a component's tensors in a file: name in its module -> name in the file.

    A root is taken off once, so that ``vocoder.vocoder.conv_pre`` becomes ``vocoder.conv_pre``.
    """
    found: dict[str, str] = {}
    for move in COMPONENTS[component].moves:
        root = move.tree.root_in(keys)
        if root is not None:
            start, but = root + move.prefix, tuple(root + other for other in move.but)
            own = (key for key in keys if key.startswith(start) and not (but and key.startswith(but)))
            found.update({move.to + key[len(start) :]: key for key in own})
    return found


def stored_name(component: Component, name: str, keys: Collection[str]) -> str:
    """What a file with these keys calls a tensor of a component's module; it need not be among the keys."""
    moves = [move for move in COMPONENTS[component].moves if name.startswith(move.to)]
    if not moves:
        return name
    move = max(moves, key=lambda move: len(move.to))
    root = move.tree.root_in(keys)
    return (move.tree.roots[0] if root is None else root) + move.prefix + name[len(move.to) :]


# diffusers' names -> official names of what a LoRA can target. Whole leading path components.
DIFFUSERS_TO_OFFICIAL: Mapping[str, str] = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}

_TO_DIFFUSERS: Mapping[str, str] = {official: theirs for theirs, official in DIFFUSERS_TO_OFFICIAL.items()}

_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_BLOCK_LINEARS = (
    *(f"{attention}.{projection}" for attention in _ATTENTIONS for projection in _PROJECTIONS),
    *(f"{ff}.{layer}" for ff in ("ff", "audio_ff") for layer in ("net.0.proj", "net.2")),
)
_ADALN_LAYERS = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
_OUTER_LINEARS = (
    *("patchify_proj", "audio_patchify_proj", "proj_out", "audio_proj_out", "proj_in", "audio_proj_in"),
    *(f"{p}caption_projection.{layer}" for p in ("", "audio_") for layer in ("linear_1", "linear_2")),
    *(
        f"{adaln}.{layer}"
        for adaln in (*DIFFUSERS_TO_OFFICIAL, *DIFFUSERS_TO_OFFICIAL.values())
        if "proj" not in adaln
        for layer in _ADALN_LAYERS
    ),
)
_DOTTED: Mapping[str, str] = {name.replace(".", "_"): name for name in (*_BLOCK_LINEARS, *_OUTER_LINEARS)}
_BLOCK = re.compile(r"transformer_blocks_(\d+)_(.+)")
_BLOCK_LAYER = re.compile(rf"transformer_blocks\.[0-9]+\.({'|'.join(map(re.escape, _BLOCK_LINEARS))})")
_OUTER_LAYERS = frozenset(_OUTER_LINEARS)


def dotted_name(underscored: str) -> str:
    """The module path that ``lora_unet_*`` files write with underscores; unknown names come back unchanged."""
    if match := _BLOCK.fullmatch(underscored):
        return f"transformer_blocks.{match[1]}.{_DOTTED.get(match[2], match[2])}"
    return _DOTTED.get(underscored, underscored)


def official_name(name: str) -> str:
    """A DiT module's official path, from that or from diffusers' path."""
    head, dot, rest = name.partition(".")
    return DIFFUSERS_TO_OFFICIAL.get(head, head) + dot + rest


def is_layer(name: str) -> bool:
    """Whether a path is one of a linear layer of some LTX-2 transformer: of either generation, and any block."""
    return name in _OUTER_LAYERS or _BLOCK_LAYER.fullmatch(name) is not None


def diffusers_name(name: str) -> str:
    """diffusers' path of a DiT module, from the official one."""
    head, dot, rest = name.partition(".")
    return _TO_DIFFUSERS.get(head, head) + dot + rest
