"""The description of a file that carries none, where its tensors are exactly a released model's.

ComfyUI's save nodes and merge scripts leave the metadata out. Settings that no tensor shows follow from the release
whose names and shapes they are; what differs in one of them is some other model, and is not guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from ..models.audio_vae import AudioVAEConfig
from ..models.audio_vae.decoder import AudioDecoder
from ..models.audio_vae.encoder import AudioEncoder
from ..models.meta_device import OnMeta
from ..models.text.config import TextConfig
from ..models.text.connector import TextConnector
from ..models.transformer.config import TransformerConfig
from ..models.transformer.model import LTXTransformer
from ..models.video_vae.config import VideoVAEConfig
from ..models.video_vae.decoder import VideoDecoder
from ..models.video_vae.encoder import VideoEncoder
from ..models.vocoder import VocoderConfig, build_vocoder
from ..models.weights_file import WeightsFile
from ..types import Component
from .component_source import Piece
from .keymaps import component_keys
from .synthetic_configs import Variant, full_size_config

Shapes = Mapping[str, tuple[int, ...]]

_VARIANTS: tuple[Variant, ...] = ("2.3", "2.0")
# Section -> what it describes. A file of the transformer has the connectors, and may have the projection elsewhere.
_PARTS: Mapping[str, tuple[Component, ...]] = {
    "transformer": (Component.TRANSFORMER, Component.TEXT_CONNECTOR),
    "vae": (Component.VIDEO_ENCODER, Component.VIDEO_DECODER),
    "audio_vae": (Component.AUDIO_ENCODER, Component.AUDIO_DECODER),
    "vocoder": (Component.VOCODER,),
}
_CREATE: Mapping[Component, Callable[[Mapping[str, Any]], nn.Module]] = {
    Component.TRANSFORMER: lambda config: LTXTransformer(TransformerConfig.from_metadata(config)),
    Component.TEXT_CONNECTOR: lambda config: TextConnector(TextConfig.from_metadata(config)),
    Component.VIDEO_ENCODER: lambda config: VideoEncoder(VideoVAEConfig.from_metadata(config)),
    Component.VIDEO_DECODER: lambda config: VideoDecoder(VideoVAEConfig.from_metadata(config)),
    Component.AUDIO_ENCODER: lambda config: AudioEncoder(AudioVAEConfig.from_metadata(config)),
    Component.AUDIO_DECODER: lambda config: AudioDecoder(AudioVAEConfig.from_metadata(config)),
    Component.VOCODER: lambda config: build_vocoder(VocoderConfig.from_metadata(config)),
}
_PROJECTION = "text_embedding_projection."
# Of the official files, without the projections (docs/model.md 1.2 and 10)
_TENSORS: Mapping[Variant, Mapping[Component, int]] = {
    "2.3": {
        Component.TRANSFORMER: 4186,
        Component.TEXT_CONNECTOR: 258,
        Component.VIDEO_ENCODER: 86,
        Component.VIDEO_DECODER: 86,
        Component.AUDIO_ENCODER: 46,
        Component.AUDIO_DECODER: 58,
        Component.VOCODER: 1227,
    },
    "2.0": {
        Component.TRANSFORMER: 3510,
        Component.TEXT_CONNECTOR: 58,
        Component.VIDEO_ENCODER: 94,
        Component.VIDEO_DECODER: 92,
        Component.AUDIO_ENCODER: 46,
        Component.AUDIO_DECODER: 58,
        Component.VOCODER: 194,
    },
}


class Derived(NamedTuple):
    """A section's description, and the generation whose it is."""

    values: Any
    generation: Variant


def derived_section(section: str, file: WeightsFile) -> Derived | None:
    """The released description that fits a file's tensors exactly; None where none does.

    The audio autoencoder is the same in both releases, and counts as the newer one's.

    Args:
        section: ``transformer``, ``vae``, ``audio_vae`` or ``vocoder``.
    """
    found = {component: _stored_shapes(component, file) for component in _PARTS[section]}
    for variant in _VARIANTS:
        if all(_fits(component, variant, shapes) for component, shapes in found.items()):
            return Derived(full_size_config(variant)[section], variant)
    return None


def _stored_shapes(component: Component, file: WeightsFile) -> Shapes:
    piece = Piece(file, component_keys(component, file.tensors)).without_scales()
    return {name: file.tensors[key].shape for name, key in piece.names.items() if not name.startswith(_PROJECTION)}


def _fits(component: Component, variant: Variant, shapes: Shapes) -> bool:
    # Most files differ in the number of tensors already; only the others cost the making of a released model
    return len(shapes) == _TENSORS[variant][component] and shapes == _released_shapes(component, variant)


@cache
def _released_shapes(component: Component, variant: Variant) -> Shapes:
    with OnMeta():
        state = _CREATE[component](full_size_config(variant)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith(_PROJECTION)}
