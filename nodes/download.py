"""Fetches the released model files, when the user has accepted their licences on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..ltx2_core.errors import CheckpointError, LTX2Error, SettingError
from ..ltx2_core.loading.artifact_names import Role
from ..ltx2_core.loading.download import RemoteFile, remote_files
from ..ltx2_core.loading.download_process import check_space, fetch, partial_bytes
from ..ltx2_core.loading.licences import missing_consent
from ..ltx2_core.loading.releases import TEXT_ENCODER, Release, released_set
from ..ltx2_core.recipes import RECIPE_NAMES
from . import host
from .licences import HOW
from .model_choice import FOLDERS, ROLES
from .progress import duration
from .sockets import CATEGORY

log = logging.getLogger("ltx2.nodes")

GENERATIONS: Mapping[str, str] = {"LTX-2.3": "2.3", "LTX-2": "2.0"}
_INPUTS: Mapping[Role, str] = {role: name for name, role in ROLES.items()}
_ACCEPTED = "You have accepted them on this machine: turn accept_licences on and run again."
_WRITE_SECONDS = 1.0
# Of a released file's size; tiny stand-ins have its name, and a quantised one is half as large
_LEAST_PART = 0.1


class Download(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageDownload",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 Download",
            category=CATEGORY,
            description="Fetches the released model files that a preset needs and that are not there yet, from Hugging "
            "Face into ComfyUI's model folders. Run it alone, with accept_licences off, to see which files those "
            "are, how large, and under which licences. An interrupted download goes on where it stopped.",
            search_aliases=["LTX-2", "LTX-2.3", "models", "Hugging Face"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "generation",
                    options=list(GENERATIONS),
                    default="LTX-2.3",
                    tooltip="Generation of the models. Files of LTX-2 and LTX-2.3 do not mix.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(RECIPE_NAMES),
                    default="two-stage",
                    tooltip="Preset whose files are fetched. two-stage and hq need the same: the checkpoint, the "
                    "distilled LoRA and the upscaler. About 47 to 55 GB.",
                ),
                io.Boolean.Input(
                    "text_encoder",
                    default=True,
                    tooltip="Also fetches Gemma 3 12B, which every preset needs. About 24 GB.",
                ),
                io.Boolean.Input(
                    "accept_licences",
                    default=False,
                    tooltip="Fetches the files, under the LTX-2 Community License Agreement and, for the text encoder, "
                    "the Gemma Terms of Use. You have to accept those once on this machine, with the button of this "
                    "node or ltx2 accept-licences: what a workflow says is not enough.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "report", display_name="report", tooltip="Which files were fetched, and where they are."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, accept_licences: bool | None = None) -> bool | str:
        """The host makes True of any text, "False" included. An input that comes over a link is None."""
        try:
            _check_switch(host.queued_literals(cls).get("accept_licences", accept_licences))
        except LTX2Error as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """Never equal to anything, itself included: whether the files are there is not decided by the inputs."""
        return float("nan")

    @classmethod
    def execute(cls, generation: str, preset: str, text_encoder: bool, accept_licences: bool) -> io.NodeOutput:
        _check_switch(accept_licences)
        files = wanted(generation, preset, text_encoder)
        places = {release: found for release in files if (found := _found(release)) is not None}
        lines = [_there(release, path) for release, path in places.items()]
        missing = [release for release in files if release not in places]
        fetching = accept_licences is True and not missing_consent(release.licence for release in missing)
        if missing and not fetching:
            lines += _offer(missing)
        elif missing:
            lines += fetch_all(missing, host.NodeSurface())
        if not missing or fetching:
            lines.append("Press R to refresh the lists of files.")
        report = "\n".join(lines)
        return io.NodeOutput(report, ui=ui.PreviewText(report))


def wanted(generation: str, preset: str, text_encoder: bool) -> tuple[Release, ...]:
    """The files of a preset, whether they are there or not.

    Raises:
        SettingError: there is no such generation or preset.
    """
    for name, value, known in (("generation", generation, GENERATIONS), ("preset", preset, RECIPE_NAMES)):
        if value not in known:
            raise SettingError(name, value, "is not known", f"Choose one of: {', '.join(known)}.")
    files = released_set(GENERATIONS[generation], preset)
    return (*files, TEXT_ENCODER) if text_encoder else files


def _there(release: Release, path: Path) -> str:
    size = path.stat().st_size
    if size > _LEAST_PART * release.gigabytes * 1e9:
        return f"{path} was there already."
    return f"{path} was there already, with {size / 1e6:.1f} MB instead of {release.gigabytes:.1f} GB: not this model."


def _offer(missing: list[Release]) -> list[str]:
    """What would be fetched, and what has to be accepted for it."""
    total = sum(release.gigabytes for release in missing)
    licences = " and the ".join(dict.fromkeys(release.licence for release in missing))
    pages = " and ".join(dict.fromkeys(release.repository for release in missing))
    open_ones = missing_consent(release.licence for release in missing)
    return [
        "Nothing was fetched. These are missing:",
        *(f"{release} into models/{_folder(release)}" for release in missing),
        f"About {total:.1f} GB, under the {licences}. Read the licences on the pages of {pages} on Hugging Face. "
        + (f"If you accept them, {HOW}. Then turn accept_licences on and run again." if open_ones else _ACCEPTED),
    ]


def _check_switch(value: Any) -> None:
    """Raises :class:`SettingError` unless it is on, off, or not known yet; texts and numbers are neither."""
    if value is not None and not isinstance(value, bool):
        raise SettingError("accept_licences", value, "must be true or false, no text and no number", "Use the switch.")


def fetch_all(files: list[Release], surface: host.NodeSurface) -> list[str]:
    """Fetches the files one after the other, those of a repository at one commit; returns what is told of each.

    Raises:
        CheckpointError: a repository cannot be read.
        OutputError: there is not enough room, or a folder is not writable. Checked before anything is fetched.
    """
    remote = _remote(files)
    sizes = {release: remote[release].nbytes for release in files}
    targets = {release: host.default_folder(_folder(release)) / release.name for release in files}
    for folder in {target.parent for target in targets.values()}:
        here = [r for r in files if targets[r].parent.stat().st_dev == folder.stat().st_dev]
        check_space(folder, sum(max(0, sizes[r] - partial_bytes(targets[r])) for r in here))
    for release in files:
        what = (release.name, sizes[release] / 1e9, release.repository, targets[release].parent, release.licence)
        log.info("fetching %s (%.1f GB) from %s into %s, under the %s", *what)
    lines, progress = list[str](), _Progress(surface, sum(sizes.values()))
    for release in files:
        if targets[release].exists():
            problem = "was put there by somebody else meanwhile"
            raise CheckpointError("folder", targets[release], problem, "Run again: what is there is not fetched.")
        progress.name = release.name
        said = (release.repository, release.path, sizes[release], targets[release], progress.report)
        commit = fetch(*said, revision=remote[release].commit, sha256=remote[release].sha256)
        progress.before += sizes[release]
        lines.append(f"{targets[release]} was fetched. It is of revision {commit[:12]}.")
    return lines


def _remote(files: list[Release]) -> dict[Release, RemoteFile]:
    """What the Hub says of the files: one look at each repository, so that all of its files are of one commit."""
    found = dict[Release, RemoteFile]()
    for repository in dict.fromkeys(release.repository for release in files):
        own = [release for release in files if release.repository == repository]
        stated = remote_files(repository, [release.path for release in own])
        found |= {release: stated[release.path] for release in own}
    return found


class _Progress:
    """How far several downloads are, on the node; every report is a chance to interrupt."""

    def __init__(self, surface: host.NodeSurface, total: int) -> None:
        self.name, self.before = "", 0
        self._surface, self._total = surface, total
        self._begun, self._written = time.monotonic(), float("-inf")

    def report(self, nbytes: int) -> None:
        self._surface.check()
        done, now = self.before + nbytes, time.monotonic()
        self._surface.bar(done, self._total)
        if now - self._written < _WRITE_SECONDS and done < self._total:
            return
        self._written = now
        text = f"{self.name}: {done / 1e9:.1f} of {self._total / 1e9:.1f} GB in all"
        if 0 < done < self._total and now > self._begun:
            rate = done / (now - self._begun)
            text += f", {rate / 1e6:.0f} MB/s, about {duration((self._total - done) / rate)} left"
        self._surface.write(text)


def _folder(release: Release) -> str:
    return FOLDERS[_INPUTS[release.role]][0]


def _found(release: Release) -> Path | None:
    """Where the file is, in whatever sub-folder of the folders for it."""
    folders = FOLDERS[_INPUTS[release.role]]
    name = next((name for name in host.model_files(folders) if Path(name).name == release.name), None)
    return None if name is None else host.find_model(name, folders)
