"""Picks, from a folder or a repository's file names, the newest set of files that fit each other, and says why."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, SettingError
from ..recipes import DEV, DISTILLED, RECIPE_NAMES
from .artifact_names import Artifact, Role, parse_names
from .listing import some

__all__ = ["Pick", "Role", "Selection", "newest", "select", "select_in_folder"]

logger = logging.getLogger("ltx2.loading")

SUPPORTED_GENERATIONS = ((2, 0), (2, 3))
_VARIANTS: Mapping[str, str] = {name: DISTILLED if name == "distilled" else DEV for name in RECIPE_NAMES}
_X2 = ("x2", "x2.0")
_LORA_RECIPES = ("two-stage", "hq", "keyframes")
_GGUF = "a GGUF file, which is not read"
_ONE_STAGE_RECIPES = ("one-stage",)
_SPLIT_ROLES = (Role.VIDEO_VAE, Role.AUDIO_VAE, Role.TEXT_PROJECTION)


@dataclass(frozen=True)
class Pick:
    """One chosen file.

    Attributes:
        name: as it was given.
        reason: why this one, in words.
    """

    role: Role
    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """A set of files of one generation.

    Attributes:
        generation: "2.0" or "2.3".
        picks: by role; a role that nothing fits is not in it.
        absent: roles that the recipe has a use for and nothing fits, with the reason.
    """

    generation: str
    picks: Mapping[Role, Pick]
    absent: Mapping[Role, str]

    def files(self, root: Path) -> dict[str, Path]:
        """Paths under ``root``, by the fields of :class:`ModelFiles`."""
        return {role.value: root / pick.name for role, pick in self.picks.items()}


@dataclass(frozen=True)
class _Criterion:
    """One thing that a better file has more of, the most important first.

    Attributes:
        value: compared with ``>``.
        loss: why a file lost by it.
    """

    value: Callable[[Artifact], Any]
    loss: Callable[[Artifact], str]


_ORDER: tuple[_Criterion, ...] = (
    _Criterion(lambda a: a.usable, lambda a: f"is {a.precision}"),
    _Criterion(lambda a: a.generation, lambda a: f"is LTX-{a.generation_text}"),
    _Criterion(lambda a: a.billions, lambda a: f"is {a.billions}b"),
    _Criterion(lambda a: a.complete, lambda _: "is the transformer alone, and its other parts are not there"),
    _Criterion(lambda a: not a.quantised, lambda a: f"is {a.precision}"),
    _Criterion(lambda a: a.revision, lambda _: "is an older revision"),
    _Criterion(lambda a: a.whole, lambda _: "is the transformer alone"),
    _Criterion(lambda a: a.precision == "bf16", lambda a: f"is {a.precision}"),
    _Criterion(lambda a: a.rank, lambda a: f"has rank {a.rank}"),
    # Of the same file in two places, the one that is found without going deeper
    _Criterion(lambda a: -a.name.count("/"), lambda _: "lies deeper"),
    _Criterion(lambda a: (-len(a.name), a.name), lambda _: "has the longer name"),
)


def select(names: Iterable[str], recipe: str, setting: str = "models", place: object = "the list") -> Selection:
    """Picks a checkpoint for a recipe, and what fits it; logs every choice.

    Newest first: generation, then parameters, all compared as numbers; of these bf16 before fp8, then the revision.
    What is in a precision that does not load comes last. The upsampler and the LoRA are of the checkpoint's own
    generation, whatever else there is. Where there is no distilled checkpoint, the distilled recipe takes a dev one
    with its distilled LoRA.

    Args:
        names: paths inside a folder or a repository, with slashes.
        recipe: decides between the dev and the distilled checkpoint, and what else is needed.
        setting, place: named in errors.

    Raises:
        CheckpointError: there is no checkpoint for the recipe.
        SettingError: the recipe is unknown.
    """
    if recipe not in RECIPE_NAMES:
        raise SettingError("recipe", recipe, "is not a known recipe", f"Choose one of: {', '.join(RECIPE_NAMES)}.")
    found = _with_parts(parse_names(names))
    checkpoint, first = _pick_checkpoint(found, recipe, setting, place)
    picks, absent = {Role.CHECKPOINT: first}, {}
    for role, fits, wanted in _companions(checkpoint, recipe):
        candidates = [a for a in found if a.role is role]
        fitting = [a for a in candidates if fits(a) and a.readable]
        if fitting:
            best, others = _best(fitting)
            passed = {a.name: _mismatch(a, checkpoint) for a in candidates if a not in fitting} | others
            picks[role] = Pick(role, best.name, _reason(wanted, passed))
        else:
            named = [a.name if a.readable else f"{a.name} ({_GGUF})" for a in candidates]
            instead = f"; there is {some(named)}" if candidates else ""
            absent[role] = f"no {wanted}{instead}"
    for pick in picks.values():
        logger.info("%s: %s (%s)", pick.role.value, pick.name, pick.reason)
    for role, why in absent.items():
        logger.info("%s: none (%s)", role.value, why)
    return Selection(checkpoint.generation_text, picks, absent)


# Below a second to look at; a large collection of models has some thousands
_MOST_ENTRIES = 20_000


def newest(names: Iterable[str], role: Role) -> str | None:
    """The file of a role that :func:`select` would rank first for the default recipe; None where there is none."""
    variants: Mapping[Role, tuple[str, ...]] = {Role.CHECKPOINT: (DEV,), Role.UPSAMPLER: _X2}
    known = _with_parts(parse_names(names))
    found = [a for a in known if a.role is role and a.readable and (not a.generation or _supported(a))]
    fitting = [a for a in found if a.variant in variants.get(role, (a.variant,))] or found
    return _best(fitting)[0].name if fitting else None


def select_in_folder(folder: Path, recipe: str, setting: str = "models") -> Selection:
    """:func:`select` over a folder and everything below it.

    Raises:
        CheckpointError: the folder does not exist or holds no checkpoint for the recipe.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(setting, folder, "is not a folder", "Give the folder that holds the model files.")
    files = list(islice(_files_below(folder), _MOST_ENTRIES + 1))
    if len(files) > _MOST_ENTRIES:
        problem = f"holds more than {_MOST_ENTRIES:,} files"
        raise CheckpointError(setting, folder, problem, "Give the folder of the models alone, or name each file.")
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    return select(names, recipe, setting, folder)


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file, those of linked folders too: model folders are often links to another disk."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if os.path.realpath(Path(root, name)) not in seen]
        # Path.is_file raises for what may not be looked at
        yield from (path for name in files if os.path.isfile(path := Path(root, name)))  # noqa: PTH113


def _with_parts(found: list[Artifact]) -> list[Artifact]:
    """The same, each checkpoint marked by whether all that it lacks is there."""
    parts = {(artifact.role, artifact.generation) for artifact in found}
    return [replace(a, complete=a.whole or all((role, a.generation) in parts for role in _SPLIT_ROLES)) for a in found]


def _pick_checkpoint(found: list[Artifact], recipe: str, setting: str, place: object) -> tuple[Artifact, Pick]:
    variant = _VARIANTS[recipe]
    candidates = [a for a in found if a.role is Role.CHECKPOINT]
    if variant == DISTILLED and not any(a.variant == variant and _supported(a) for a in candidates):
        # A dev checkpoint and the distilled LoRA do the same work
        loras = {(a.generation, a.billions) for a in found if a.role is Role.DISTILLED_LORA and a.readable}
        variant = DEV if any((a.generation, a.billions) in loras for a in candidates if _supported(a)) else variant
        candidates = [a for a in candidates if variant != DEV or (a.generation, a.billions) in loras]
    passed = {a.name: f"is the {a.variant} model" for a in candidates if a.variant != variant}
    passed |= {a.name: "is a generation that is not supported" for a in candidates if not _supported(a)}
    passed |= {a.name: f"is {_GGUF}" for a in candidates if not a.readable}
    fitting = [a for a in candidates if a.name not in passed]
    if not fitting:
        instead = "".join(f"; {name} {why}" for name, why in list(passed.items())[:3])
        problem = f"holds no {variant} checkpoint of LTX-2 or LTX-2.3, which the {recipe} recipe needs{instead}"
        fix = f"Get ltx-2.3-22b-{variant}{'-1.1' if variant == 'distilled' else ''}.safetensors."
        raise CheckpointError(setting, place, problem, fix)
    best, others = _best(fitting)
    wanted = f"{variant} checkpoint for the {recipe} recipe"
    return best, Pick(Role.CHECKPOINT, best.name, _reason(wanted, passed | others))


def _companions(checkpoint: Artifact, recipe: str) -> list[tuple[Role, Callable[[Artifact], bool], str]]:
    """Roles that the recipe has a use for, what fits, and what that is in words."""
    generation, billions = checkpoint.generation, checkpoint.billions
    model = f"LTX-{checkpoint.generation_text}"

    def same_generation(artifact: Artifact) -> bool:
        return artifact.generation == generation

    wanted: list[tuple[Role, Callable[[Artifact], bool], str]] = []
    if recipe not in _ONE_STAGE_RECIPES:
        x2 = f"spatial x2 upsampler of {model}"
        wanted.append((Role.UPSAMPLER, lambda a: same_generation(a) and a.variant in _X2, x2))
    if recipe in _LORA_RECIPES or (_VARIANTS[recipe] == DISTILLED and checkpoint.variant == DEV):
        lora = f"distilled LoRA of {model} {billions}b"
        wanted.append((Role.DISTILLED_LORA, lambda a: same_generation(a) and a.billions == billions, lora))
    if not checkpoint.whole:
        wanted += [(r, same_generation, f"{r.value.replace('_', ' ')} of {model}") for r in _SPLIT_ROLES]
    # A folder may be called anything; where a name says the size, it has to be the released one
    wanted.append((Role.GEMMA, lambda a: a.billions in (0, 12), "Gemma 3 12B text encoder"))
    return wanted


def _supported(artifact: Artifact) -> bool:
    return artifact.readable and artifact.generation in SUPPORTED_GENERATIONS


def _best(candidates: list[Artifact]) -> tuple[Artifact, dict[str, str]]:
    """The best one, and why each of the others is not."""
    best = max(candidates, key=lambda a: tuple(criterion.value(a) for criterion in _ORDER))
    return best, {a.name: _why_worse(a, best) for a in candidates if a is not best}


def _why_worse(artifact: Artifact, best: Artifact) -> str:
    return next(c.loss(artifact) for c in _ORDER if c.value(artifact) != c.value(best))


def _mismatch(artifact: Artifact, checkpoint: Artifact) -> str:
    if not artifact.readable:
        return f"is {_GGUF}"
    if artifact.generation and artifact.generation != checkpoint.generation:
        return f"is of LTX-{artifact.generation_text}"
    if artifact.role is Role.UPSAMPLER:
        return f"is {artifact.variant}"
    return f"is {artifact.billions}b"


def _reason(wanted: str, passed: Mapping[str, str]) -> str:
    if not passed:
        return f"the only {wanted}"
    return f"the newest {wanted}; " + ", ".join(f"{name} {why}" for name, why in passed.items())
