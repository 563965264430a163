"""What the names of released files say: role, generation, size, revision and precision (docs/model.md 1.1 and 1.4)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePosixPath

from ..files.header import SUFFIXES
from ..recipes import DEV, DISTILLED, UNKNOWN


class Role(str, Enum):
    """The values are the fields of :class:`ModelFiles`."""

    CHECKPOINT = "checkpoint"
    UPSAMPLER = "upsampler"
    DISTILLED_LORA = "distilled_lora"
    VIDEO_VAE = "video_vae"
    AUDIO_VAE = "audio_vae"
    TEXT_PROJECTION = "text_projection"
    GEMMA = "gemma"


Version = tuple[int, ...]


@dataclass(frozen=True)
class Artifact:
    """One file, or one folder of a text encoder, as its name describes it.

    Attributes:
        name: path inside the folder or repository, with slashes.
        generation: (2, 0) or (2, 3); () where the name says none.
        billions: of parameters, 0 where the name says none.
        variant: ``dev`` or ``distilled``; of an upsampler, its factor, such as ``x2``.
        revision: such as (1, 1); () for a first issue without a number.
        rank: of a LoRA.
        precision: ``bf16`` where the name says none.
        whole: False for a transformer without the other parts.
        complete: whole, or with the other parts among the files that it was found with.
    """

    name: str
    role: Role
    generation: Version = ()
    billions: int = 0
    variant: str = ""
    revision: Version = ()
    rank: int = 0
    precision: str = "bf16"
    whole: bool = True
    complete: bool = True

    @property
    def usable(self) -> bool:
        """Whether the weights are in a precision that loads."""
        fp8 = self.precision.startswith("fp8") and "e5m2" not in self.precision
        return not self.quantised or (fp8 and self.role in _FP8_ROLES)

    @property
    def readable(self) -> bool:
        """Whether the file is in a format that is read at all."""
        return self.precision != GGUF

    @property
    def quantised(self) -> bool:
        return self.precision not in FULL_PRECISIONS

    @property
    def generation_text(self) -> str:
        return ".".join(str(part) for part in self.generation)


GGUF = "gguf"  # stands for all its precisions
_GGUF_PRECISION = re.compile(r"-(?:ud-)?(?:i?q\d(?:-[a-z0-9]+)*|bf16|f16|f32)$")
FULL_PRECISIONS = ("bf16", "fp16", "fp32")
_FP8_ROLES = (Role.CHECKPOINT, Role.GEMMA)
_FP8_WORDS = r"(?:-(?:scaled|input|mixed|static|dynamic|learned|fast|e4m3fn|e4m3|e5m2|comfy|v\d+))*"
_PRECISION_NAMES = rf"bf16|fp16|fp32|(?:mx|nv)?fp[48]{_FP8_WORDS}|int[48][a-z0-9-]*"
_PRECISION = rf"(?:-(?P<precision>{_PRECISION_NAMES}))?"
_REVISION_NUMBER = r"v?(?P<revision>\d+(?:\.\d+)+)"
# Revision and precision come in either order, and so does the mark of a file without the other parts
_TAIL = rf"(?:-(?:{_REVISION_NUMBER}|(?P<precision>{_PRECISION_NAMES})))*"
_CHECKPOINT_TAIL = rf"(?:-(?:{_REVISION_NUMBER}|(?P<part>transformer-only)|(?P<precision>{_PRECISION_NAMES})))*"

# What follows "ltx-2.3-" in a name, lower case and with dashes only -> role. Everything has to match, so that other
# LoRAs (ic-lora, control, camera) and temporal upscalers are not taken for these.
_AFTER_MODEL: tuple[tuple[Role, str], ...] = (
    (Role.UPSAMPLER, rf"spatial-upscaler-(?P<variant>x[\d.]+?){_TAIL}"),
    (Role.DISTILLED_LORA, rf"(?P<billions>\d+)b-distilled-lora(?:-(?P<rank>\d+))?{_TAIL}"),
    (Role.CHECKPOINT, rf"(?P<billions>\d+)b-(?P<variant>dev|distilled){_CHECKPOINT_TAIL}"),
    (Role.VIDEO_VAE, rf"video-vae{_TAIL}"),
    (Role.AUDIO_VAE, rf"audio-vae{_TAIL}"),
    (Role.TEXT_PROJECTION, rf"text-projection{_TAIL}"),
)
_PATTERNS = tuple((role, re.compile(rf"ltx-?2\.?(?P<minor>\d*)-{rest}")) for role, rest in _AFTER_MODEL)
_GEMMA_FILE = re.compile(rf"gemma-?3-(?P<billions>\d+)b(?:-it)?{_PRECISION}")
_GEMMA_BILLIONS = re.compile(r"gemma-?3-(\d+)b")


def parse_name(name: str) -> Artifact | None:
    """What a file's name says, or None when it is no file of a known kind."""
    path = PurePosixPath(name)
    return _parse_stem(name, _stem(path)) if path.suffix.lower() in SUFFIXES else None


def parse_gguf_name(name: str) -> Artifact | None:
    """:func:`parse_name` for GGUF files, which are not read: for telling what lies there in place of a file that is."""
    path = PurePosixPath(name)
    if path.suffix.lower() != ".gguf":
        return None
    found = _parse_stem(name, _GGUF_PRECISION.sub("", _stem(path)))
    return found and replace(found, precision=GGUF)


def _stem(path: PurePosixPath) -> str:
    return path.stem.lower().replace("_", "-")


def _parse_stem(name: str, stem: str) -> Artifact | None:
    for role, pattern in _PATTERNS:
        if match := pattern.fullmatch(stem):
            return _artifact(name, role, match.groupdict())
    if match := _GEMMA_FILE.fullmatch(stem):
        return _artifact(name, Role.GEMMA, match.groupdict())
    return None


_DISTILLED_LORA = re.compile(r"(?<![a-z])distill?ed[-_. ]*lora(?![a-z])")
_VARIANT_WORDS = (
    (DEV, re.compile(r"(?<![a-z])dev(?![a-z])")),
    (DISTILLED, re.compile(r"(?<![a-z])distill?ed(?![a-z])")),
)


def variant_of(text: str) -> str:
    """Whether a checkpoint is the dev or the distilled one, as far as its name or another text says.

    Headers do not tell: both have the same tensors and the same metadata. A text that has both words, such as that of a
    merge, is as unknown as one that has neither.
    """
    found = [variant for variant, word in _VARIANT_WORDS if word.search(text.lower())]
    return found[0] if len(found) == 1 else UNKNOWN


def is_distilled_lora(name: str) -> bool:
    """Whether a LoRA's file is called like the distilled one, whoever resized or renamed it."""
    return _DISTILLED_LORA.search(PurePosixPath(name.replace("\\", "/")).name.lower()) is not None


def _artifact(name: str, role: Role, found: Mapping[str, str | None]) -> Artifact:
    minor = found.get("minor")
    return Artifact(
        name=name,
        role=role,
        generation=() if minor is None else (2, int(minor or 0)),
        billions=int(found.get("billions") or 0),
        variant=found.get("variant") or "",
        revision=tuple(int(part) for part in (found.get("revision") or "").split(".") if part),
        rank=int(found.get("rank") or 0),
        precision=found.get("precision") or "bf16",
        whole=not found.get("part"),
    )


def parse_names(names: Iterable[str]) -> list[Artifact]:
    """Every known file among the names, and every folder that holds a text encoder with its tokenizer."""
    unique = dict.fromkeys(str(name).replace("\\", "/") for name in names)
    files = [artifact for name in unique if (artifact := parse_name(name) or parse_gguf_name(name))]
    return files + _gemma_folders(unique)


def _gemma_folders(names: Collection[str]) -> list[Artifact]:
    contents: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        contents.setdefault(str(path.parent), set()).add(path.name)
    found = []
    for folder, files in contents.items():
        path = PurePosixPath(folder)
        if "config.json" not in files or not any(file.lower().endswith(SUFFIXES) for file in files):
            continue
        if files & {"tokenizer.json", "tokenizer.model"}:
            home, known = folder, "gemma" in path.name.lower() or path.name == "text_encoder"
        else:  # a pipeline's folder, with the tokenizer beside the text encoder
            home, beside = str(path.parent), contents.get(str(path.parent / "tokenizer"), set())
            known = path.name == "text_encoder" and bool(beside & {"tokenizer.json", "tokenizer.model"})
        if known:
            size = _GEMMA_BILLIONS.search(home.lower().replace("_", "-"))
            found.append(Artifact(home, Role.GEMMA, billions=int(size[1]) if size else 0))
    return found
