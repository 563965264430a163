"""The description of a file that carries none, where its tensors are exactly a released model's.

ComfyUI's save nodes and merge scripts leave the metadata out. Settings that no tensor shows follow from the release
whose names and shapes they are; what differs in one of them is some other model, and is not guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from ..components import COMPONENTS, PARTS
from ..models.meta_device import OnMeta
from ..models.weights_file import WeightsFile
from ..types import Component
from .component_source import Piece
from .keymaps import component_keys
from .synthetic_configs import Variant, full_size_config

Shapes = Mapping[str, tuple[int, ...]]

_VARIANTS: tuple[Variant, ...] = ("2.3", "2.0")
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
    parts = (component for component in PARTS if COMPONENTS[component].section == section)
    found = {component: _stored_shapes(component, file) for component in parts}
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
    row = COMPONENTS[component]
    with OnMeta():
        state = row.make(row.read(full_size_config(variant), {})).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith(_PROJECTION)}
