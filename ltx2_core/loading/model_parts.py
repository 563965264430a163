"""Which file each part of a model comes from, and where its description is: one official file, or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..components import COMPONENTS, CONNECTORS, SECTIONS
from ..errors import CheckpointError, ConfigError
from ..models.weights_file import WeightsFile
from ..plain_text import plain
from ..types import Component
from .component_source import Piece
from .derived_config import derived_section
from .identify import FileKind, identify
from .keymaps import component_keys

T = TypeVar("T")
logger = logging.getLogger("ltx2.loading")

# Sections of the metadata's ``config``, and the class that a file which holds one section alone states in its place.
_SECTION_CLASSES: Mapping[str, str] = {"transformer": "AVTransformer3DModel", "vae": "CausalVideoAutoencoder"}
_LONGEST_NOTICE = 400  # characters: a few lines on a node
_KEEP_METADATA = "Use the official file, or one converted with its metadata ('config') kept."


@dataclass(frozen=True)
class ModelParts:
    """The files that hold a model, opened.

    Attributes:
        checkpoint: the transformer, and everything that no other file brings.
    """

    checkpoint: WeightsFile
    video_vae: WeightsFile | None = None
    audio_vae: WeightsFile | None = None
    text_projection: WeightsFile | None = None

    @classmethod
    def open(
        cls, checkpoint: Path, video_vae: Path | None, audio_vae: Path | None, text_projection: Path | None
    ) -> ModelParts:
        """Reads headers, and checks that every file is what its setting asks for.

        Raises:
            CheckpointError: a file is unusable, or holds something else.
        """
        full = FileKind.FULL_MODEL
        return cls(
            _open(checkpoint, "checkpoint", full, FileKind.TRANSFORMER),
            _open(video_vae, "video-vae", FileKind.VIDEO_VAE, full) if video_vae else None,
            _open(audio_vae, "audio-vae", FileKind.AUDIO_VAE, full) if audio_vae else None,
            _open(text_projection, "text-projection", FileKind.TEXT_PROJECTION, full) if text_projection else None,
        )

    def pieces(self, component: Component) -> tuple[Piece, ...]:
        """Where a component's tensors are.

        Raises:
            CheckpointError: no file that was given holds any.
        """
        if component is Component.TEXT_CONNECTOR:
            pieces = self._text_pieces()
        else:
            file = self._home(component)
            pieces = [Piece(file, component_keys(component, file.tensors))]
        pieces = [piece for piece in pieces if piece.names]
        if not pieces:
            raise self._lacks(component)
        return tuple(pieces)

    def config(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The description of all parts, one section each, from the file that holds the part or else the checkpoint.

        A part that neither describes is described as the released model whose tensors it has exactly.

        Returns:
            The description, and sentences about files without one that the user should read.

        Raises:
            CheckpointError: neither has one, and it is no released model's part.
        """
        homes = {section: self._of(section) for section in SECTIONS}
        stated = {section: self._stated(section, home) for section, home in homes.items()}
        derived = {section: _derived(section, homes[section]) for section, found in stated.items() if found is None}
        notices = tuple(notice for _, notice in derived.values())
        for notice in notices:
            logger.warning("%s", notice)
        return stated | {section: values for section, (values, _) in derived.items()}, notices

    def file_of(self, section: str) -> WeightsFile:
        """The file that describes a section, for errors about it."""
        home = self._of(section)
        return home if _own_section(section, home) is not None else self.checkpoint

    def _home(self, component: Component) -> WeightsFile:
        section = COMPONENTS[component].section
        return self.checkpoint if section is None else self._of(section)

    def _of(self, section: str) -> WeightsFile:
        """The file whose part a section describes."""
        own: WeightsFile | None = getattr(self, SECTIONS[section].replace("-", "_"))
        return self.checkpoint if own is None else own

    def _text_pieces(self) -> list[Piece]:
        """Connectors and projections lie in one file or in two; the projection's own file comes first."""
        taken: set[str] = set()
        pieces = []
        for file in (self.text_projection, self.checkpoint):
            if file is not None:
                names = component_keys(Component.TEXT_CONNECTOR, file.tensors)
                own = {name: key for name, key in names.items() if name.split(".")[0] not in taken}
                taken |= {name.split(".")[0] for name in own}
                pieces.append(Piece(file, own))
        if taken == {connector.rstrip(".") for connector in CONNECTORS}:
            problem = "holds no text projection (text_embedding_projection.*)"
            raise self.checkpoint.error(problem, "Give the text projection's file (text-projection) as well.")
        return pieces

    def _stated(self, section: str, home: WeightsFile) -> Any:
        found = _own_section(section, home)
        return found if found is not None else _own_section(section, self.checkpoint)

    def _lacks(self, component: Component) -> CheckpointError:
        file, what = self._home(component), component.value.replace("_", " ")
        fix = f"Give the file that holds it ({COMPONENTS[component].setting}), or use the full official checkpoint."
        return file.error(f"holds no {what} ({identify(file)})", fix)


def naming_file(parts: ModelParts, section: str, read: Callable[[], T]) -> T:
    """Reads one section's description; an error in it names the file."""
    try:
        return read()
    except ConfigError as error:
        name = parts.file_of(section).path.name
        raise ConfigError(error.key, error.value, f"{error.problem} (in the metadata of {name})", error.fix) from error


def _derived(section: str, home: WeightsFile) -> tuple[Any, str]:
    """The description of a part that no metadata describes, and a sentence that says where it is from."""
    found = derived_section(section, home)
    if found is None:
        problem = (
            f"carries no description of its model (section {section!r} of its metadata), "
            "and its tensors are not exactly those of LTX-2 or LTX-2.3"
        )
        raise home.error(problem, _KEEP_METADATA)
    what = f"{home.path.name} carries no description of its {section.replace('_', ' ')}"
    notice = f"{what}; its tensors are exactly those of LTX-{found.generation}, whose description is used."
    return found.values, plain(notice, _LONGEST_NOTICE)


def _own_section(section: str, file: WeightsFile) -> Any:
    config = file.config or {}
    if section not in config and config.get("_class_name") == _SECTION_CLASSES.get(section, "none"):
        return config
    return config.get(section)


def _open(path: Path, setting: str, *kinds: FileKind) -> WeightsFile:
    file = WeightsFile.open(path, setting)
    found = identify(file)
    if found.kind not in kinds:
        wanted = " or ".join(kind.value for kind in kinds)
        if found.kind is FileKind.UNKNOWN:
            problem = "does not look like any LTX-2 file"
        else:
            problem = f"is {found}, not an LTX-2 {wanted}"
        raise file.error(problem, f"Give an LTX-2 or LTX-2.3 file for {setting}: {wanted}.")
    return file
