"""The components of a model whose weights lie in LTX-2 files, a row each: what describes, makes and holds one.

The text encoder is a model of others, with files of its own: see :mod:`ltx2_core.models.text.gemma`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .models.audio_vae import AudioVAEConfig
from .models.audio_vae.decoder import AudioDecoder
from .models.audio_vae.encoder import AudioEncoder
from .models.counts import Count
from .models.text.config import TextConfig
from .models.text.connector import TextConnector
from .models.transformer.config import TransformerConfig
from .models.transformer.model import LTXTransformer
from .models.upsampler import LatentUpsampler, UpsamplerConfig
from .models.video_vae.config import VideoVAEConfig
from .models.video_vae.decoder import VideoDecoder
from .models.video_vae.encoder import VideoEncoder
from .models.vocoder import VocoderConfig, build_vocoder
from .types import Component

Shapes = Mapping[str, tuple[int, ...]]

STATISTICS = ("mean-of-means", "std-of-means")  # of the statistics in a file, those that the models use


@dataclass(frozen=True)
class Tree:
    """A part of a file that has one owner.

    Attributes:
        roots: prefixes under which it is found, official first; "" is a file that keeps no prefix.
        anchors: how a key of such a part begins after the root; one of them is there.
    """

    roots: tuple[str, ...]
    anchors: tuple[str, ...]

    def root_in(self, keys: Iterable[str]) -> str | None:
        """The prefix that this part has in a file, or None."""
        for root in self.roots:
            if any(key.startswith(tuple(root + anchor for anchor in self.anchors)) for key in keys):
                return root
        return None


DIT = Tree(("model.diffusion_model.", "diffusion_model.", ""), ("patchify_proj.",))
# Several anchors, so that a file without its statistics is told what it lacks. Other models' VAEs nest no such "conv".
_AUTOENCODER = ("per_channel_statistics.mean-of-means", "encoder.conv_in.conv.", "decoder.conv_in.conv.")
VIDEO_VAE = Tree(("vae.", ""), _AUTOENCODER)
AUDIO_VAE = Tree(("audio_vae.", ""), _AUTOENCODER)
VOCODER = Tree(("vocoder.",), ("",))
PROJECTION = Tree(("text_embedding_projection.", ""), ("video_aggregate_embed.", "aggregate_embed."))
UPSAMPLER = Tree(("",), ("",))

# Parts of the text connector; official files keep them under the DiT's prefix.
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
_PROJECTIONS_TO = tuple(f"{stream}aggregate_embed." for stream in ("", "video_", "audio_"))
# What lies beside a DiT in its file, and is not its own
_NOT_DIT = (*CONNECTORS, "vae.", "audio_vae.", "vocoder.", "text_embedding_projection.", *_PROJECTIONS_TO)


@dataclass(frozen=True)
class Move:
    """Keys under a tree's root that start with ``prefix`` belong to a module, there starting with ``to``."""

    tree: Tree
    prefix: str
    to: str = ""
    but: tuple[str, ...] = ()  # except those that start with one of these


def _autoencoder(tree: Tree, half: str) -> tuple[Move, ...]:
    statistics = (f"per_channel_statistics.{name}" for name in STATISTICS)
    return (Move(tree, f"{half}."), *(Move(tree, name, name) for name in statistics))


@dataclass(frozen=True)
class Row:
    """What there is to know of one component.

    Attributes:
        setting: that names a file of its own for it.
        section: of the metadata's ``config`` that describes it; None: the file's whole description does.
        read: its config, from the description of all parts and the shapes of its own tensors by name in the module.
        make: its module, of its config; on whatever device is the default.
        moves: where its tensors are in a file. What the module needs in addition is reported as missing, strictly.
        counts: numbers of its config that say how often a part of it is there.
        dtype: of the loaded weights; None: the run's.
        optional: only some runs need it, so that a plan does not count it.
    """

    setting: str
    section: str | None
    read: Callable[[Any, Shapes], Any]
    make: Callable[[Any], nn.Module]
    moves: tuple[Move, ...]
    counts: Callable[[Any], tuple[Count, ...]] = lambda _: ()
    dtype: torch.dtype | None = None
    optional: bool = False


def _text_config(config: Mapping[str, Any], shapes: Shapes) -> TextConfig:
    # The metadata does not name the inputs of the projection
    inputs = (shape[1] for name, shape in shapes.items() if name.endswith("aggregate_embed.weight") and len(shape) == 2)
    return TextConfig.from_metadata(config, next(inputs, None))


def _video_vae(config: Mapping[str, Any], _shapes: Shapes) -> VideoVAEConfig:
    return VideoVAEConfig.from_metadata(config)


def _audio_vae(config: Mapping[str, Any], _shapes: Shapes) -> AudioVAEConfig:
    return AudioVAEConfig.from_metadata(config)


COMPONENTS: Mapping[Component, Row] = {
    Component.TRANSFORMER: Row(
        "checkpoint",
        "transformer",
        lambda config, _: TransformerConfig.from_metadata(config),
        LTXTransformer,
        (Move(DIT, "", but=_NOT_DIT),),
        lambda config: config.counts,
    ),
    Component.TEXT_CONNECTOR: Row(
        "text-projection",
        "transformer",
        _text_config,
        TextConnector,
        (
            *(Move(DIT, prefix, prefix) for prefix in CONNECTORS),
            *(Move(PROJECTION, prefix, f"text_embedding_projection.{prefix}") for prefix in _PROJECTIONS_TO),
        ),
        lambda config: config.counts,
    ),
    Component.VIDEO_ENCODER: Row(
        "video-vae",
        "vae",
        _video_vae,
        VideoEncoder,
        _autoencoder(VIDEO_VAE, "encoder"),
        lambda config: config.encoder_counts,
    ),
    Component.VIDEO_DECODER: Row(
        "video-vae",
        "vae",
        _video_vae,
        VideoDecoder,
        _autoencoder(VIDEO_VAE, "decoder"),
        lambda config: config.decoder_counts,
    ),
    Component.AUDIO_ENCODER: Row(
        "audio-vae",
        "audio_vae",
        _audio_vae,
        AudioEncoder,
        _autoencoder(AUDIO_VAE, "encoder"),
        lambda config: config.encoder_counts,
        optional=True,
    ),
    Component.AUDIO_DECODER: Row(
        "audio-vae",
        "audio_vae",
        _audio_vae,
        AudioDecoder,
        _autoencoder(AUDIO_VAE, "decoder"),
        lambda config: config.decoder_counts,
    ),
    Component.VOCODER: Row(
        "audio-vae",
        "vocoder",
        lambda config, _: VocoderConfig.from_metadata(config),
        build_vocoder,
        (Move(VOCODER, ""),),
        dtype=torch.float32,
    ),
    Component.UPSAMPLER: Row("upsampler", None, UpsamplerConfig.from_metadata, LatentUpsampler, (Move(UPSAMPLER, ""),)),
}
# Of one model, as one file or several; the upsampler is another model
PARTS = tuple(component for component, row in COMPONENTS.items() if row.section is not None)
# Section of the description -> the setting of the file that has it, where that is not the checkpoint
SECTIONS: Mapping[str, str] = {
    row.section: "checkpoint" if row.section == "transformer" else row.setting
    for row in COMPONENTS.values()
    if row.section is not None
}


def weight_dtype(component: Component, dtype: torch.dtype) -> torch.dtype:
    """Of a component's loaded weights in a run of this dtype."""
    row = COMPONENTS.get(component)
    return dtype if row is None or row.dtype is None else row.dtype
