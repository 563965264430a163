"""Which files a command line means: those that it names, else the newest that fit in its folder or repository."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from ..ltx2_core.errors import SettingError
from ..ltx2_core.loading.artifacts import Role, select_in_folder
from ..ltx2_core.loading.download import REPOSITORIES, download_gemma, download_set
from ..ltx2_core.loading.model_set import LoRASource, ModelFiles
from ..ltx2_core.loading.releases import GEMMA_LICENCE

log = logging.getLogger("ltx2.cli")

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(arguments: argparse.Namespace) -> ModelFiles:
    """The files of ``ltx2 generate``. What is named on the command line wins over what was found.

    Raises:
        SettingError: the text encoder is missing, or ``--checkpoint`` with ``--download`` is no repository's name.
        CheckpointError: the folder or the repository holds no set for the recipe, or cannot be reached.
    """
    named = {role: path for role in Role if (path := getattr(arguments, role.value)) is not None}
    if arguments.download:
        found = _downloaded(arguments.checkpoint, arguments.recipe, Role.GEMMA not in named)
    elif arguments.checkpoint.is_dir():
        selection = select_in_folder(arguments.checkpoint, arguments.recipe, "checkpoint")
        found = {Role(name): path for name, path in selection.files(arguments.checkpoint).items()}
    else:
        found = {}
    if found:
        del named[Role.CHECKPOINT]
    chosen: Mapping[Role, Path] = {**found, **named}
    if Role.GEMMA not in chosen:
        raise SettingError("gemma", None, "is not given", "Give the folder or the file of Gemma 3 12B.")
    return ModelFiles(
        checkpoint=chosen[Role.CHECKPOINT],
        gemma=chosen[Role.GEMMA],
        upsampler=chosen.get(Role.UPSAMPLER),
        distilled_lora=chosen.get(Role.DISTILLED_LORA),
        loras=tuple(LoRASource(lora.path, lora.strength, lora.stage) for lora in arguments.lora),
        video_vae=chosen.get(Role.VIDEO_VAE),
        audio_vae=chosen.get(Role.AUDIO_VAE),
        text_projection=chosen.get(Role.TEXT_PROJECTION),
    )


def _downloaded(repository: Path, recipe: str, with_gemma: bool) -> dict[Role, Path]:
    """The set of a repository, in the Hub's cache; what is there already is not loaded again."""
    name = repository.as_posix()
    if not _REPOSITORY.fullmatch(name):
        fix = f"Write owner/name, such as {REPOSITORIES['2.3']}, or leave --download out for files of this machine."
        raise SettingError("checkpoint", name, "is no repository's name", fix)
    log.info("%s is fetched under the licence on its page, Gemma under the %s", name, GEMMA_LICENCE)
    _, paths = download_set(name, recipe)
    return {**paths, Role.GEMMA: download_gemma()} if with_gemma else paths
