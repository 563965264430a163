"""LoRA files of every known key format, read as targets under official module names (docs/model.md 9)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files.safetensors_file import PLAIN_DTYPES, SafetensorsFile
from ..plain_text import plain
from .identify import other_model
from .keymaps import diffusers_name
from .listing import some
from .lora_keys import PREFIXES, WHOLE, LoRAKey, is_layer, other_part, parse_key
from .lora_statements import LARGEST_SCALE, LoRAStatements, StatementProblem

logger = logging.getLogger("ltx2.loading")

_LONGEST_NOTICE = 400  # characters: a few lines on a node
_PLAIN_LORA = "Use a plain LoRA file for LTX-2, with lora_A/lora_B or lora_down/lora_up matrices."
_SAVE_AGAIN = "Save the LoRA again with sound metadata, or with an .alpha tensor for each layer."
# Trainers that took alpha from an integer setting have stored it as one
_ALPHA_DTYPES = PLAIN_DTYPES | {"I8", "U8", "I16", "I32", "I64"}
_NAMED_IC_LORA = re.compile(r"(?<![a-z])ic[-_ ]?lora", re.IGNORECASE)


@dataclass(frozen=True)
class LoRATarget:
    """The change of one linear layer: W + strength * alpha / rank * up @ down.

    Attributes:
        down, up: names of the matrices [rank, in] and [out, rank] in the file.
        alpha: name of the scalar in the file, which counts before what the metadata states.
        stated: alpha as the metadata states it; None without a scalar: alpha equals the rank.
    """

    down: str
    up: str
    alpha: str | None
    rank: int
    in_features: int
    out_features: int
    stated: float | None = None


class LoRAWeights(NamedTuple):
    down: Tensor
    up: Tensor
    alpha: float


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA whose header was read.

    Attributes:
        targets: official module path in the DiT -> what changes it. Paths that no LTX-2 transformer has are among them;
            :func:`check_fit` refuses those.
        skipped: targets in other parts of the model, which are left out.
        statements: what the metadata says.
        remarks: sentences that the user should read, beside the one on what is left out.
    """

    file: SafetensorsFile
    targets: Mapping[str, LoRATarget]
    skipped: tuple[str, ...]
    statements: LoRAStatements = field(default_factory=LoRAStatements)
    remarks: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, setting: str) -> LoRAFile:
        """Reads the header only; targets outside the DiT are left out, and :attr:`notices` say so.

        Raises:
            CheckpointError: no sound safetensors file, no LoRA, a kind of adapter that is not supported, matrices
                that do not fit each other, or metadata from which no strength can be told.
        """
        found = cls.parse(SafetensorsFile.open(path, setting))
        for notice in found.notices:
            logger.warning("%s", notice)
        return found

    @classmethod
    def parse(cls, file: SafetensorsFile) -> LoRAFile:
        """:meth:`open` for a file that is open; says nothing of what is left out."""
        statements = LoRAStatements.read(file.metadata)
        _check_kind(file, statements)
        layers, skipped = _layers(file)
        targets = {name: _target(name, keys, file) for name, keys in layers.items()}
        if not targets:
            raise file.error(_nothing(skipped), _PLAIN_LORA)
        file.require_plain(key for target in targets.values() for key in (target.down, target.up))
        targets, remarks = _with_alphas(file, statements, targets, layers)
        return cls(file, targets, skipped, statements, remarks)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences that the user should read: what of the file is left out, or not clear."""
        said = list(self.remarks)
        if self.skipped:
            count = f"{len(self.skipped)} targets outside the diffusion transformer are left out"
            said.insert(0, f"{count}: {some([plain(name, 100) for name in self.skipped])}.")
        return tuple(plain(f"{self.path.name}: {sentence}", _LONGEST_NOTICE) for sentence in said)

    @property
    def has_alpha(self) -> bool:
        """Whether some layer's alpha is stated, by a tensor or by the metadata."""
        return any(target.alpha or target.stated is not None for target in self.targets.values())

    @property
    def alpha_source(self) -> str:
        """Where alpha is stated: "tensors", the metadata's entry, both, or ""."""
        sources = ["tensors"] if any(target.alpha for target in self.targets.values()) else []
        stated = any(target.stated is not None and not target.alpha for target in self.targets.values())
        return " and ".join([*sources, self.statements.source] if stated else sources)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Targets that are layers of no LTX-2 transformer."""
        return tuple(name for name in self.targets if not is_layer(name))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, ascending."""
        return tuple(sorted({target.rank for target in self.targets.values()}))

    @property
    def parameters(self) -> int:
        return sum(t.rank * (t.in_features + t.out_features) for t in self.targets.values())

    @property
    def generation_guess(self) -> str | None:
        """ "2.0" or "2.3" where targets, shapes or metadata tell, else None: most layers are alike in both."""
        names = [name for name in self.targets if is_layer(name)]
        if any("to_gate_logits" in name or "prompt_adaln_single" in name for name in names):
            return "2.3"
        if any("caption_projection" in name for name in names):
            return "2.0"
        for stream in ("", "audio_"):
            if adaln := self.targets.get(f"{stream}adaln_single.linear"):
                return {6: "2.0", 9: "2.3"}.get(adaln.out_features // adaln.in_features)
        version = self.file.model_version or ""
        return next((generation for generation in ("2.3", "2.0") if version.startswith(generation)), None)

    def read(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, LoRAWeights]:
        """All matrices, on ``device`` in ``dtype``; every tensor is read once.

        Raises:
            CheckpointError: the file changed, or holds numbers that are not finite.
        """
        matrices = self.file.read([key for t in self.targets.values() for key in (t.down, t.up)], device, dtype)
        scalars = dict(self.file.each([t.alpha for t in self.targets.values() if t.alpha]))
        alphas = {name: float(scalars[t.alpha]) for name, t in self.targets.items() if t.alpha}
        self._check_finite(matrices, alphas)
        return {
            name: LoRAWeights(matrices[t.down], matrices[t.up], alphas.get(name, t.stated or float(t.rank)))
            for name, t in self.targets.items()
        }

    def _check_finite(self, matrices: Mapping[str, Tensor], alphas: Mapping[str, float]) -> None:
        for name, alpha in alphas.items():
            if not abs(alpha) <= LARGEST_SCALE * self.targets[name].rank:
                problem = f"has an alpha of {alpha:g} for a rank of {self.targets[name].rank} at {name}"
                raise self.file.error(
                    problem, "Use a sound copy of the LoRA: this one is damaged, or its training was."
                )
        # Two numbers of each matrix, without a copy (2.4 GB/s on one slow core), and one look at all of them: a device
        # is waited for once
        extremes = torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in matrices.values()])
        if extremes.is_meta or bool(extremes.isfinite().all()):
            return
        finite = extremes.isfinite().all(dim=1).tolist()
        broken = {key for key, good in zip(matrices, finite, strict=True) if not good}
        layers = [name for name, t in self.targets.items() if {t.down, t.up} & broken]
        dtype = str(next(iter(matrices.values())).dtype).removeprefix("torch.")
        problem = f"holds numbers that are not finite in {dtype}, in the matrices of {len(layers)} of its layers"
        fix = "Use a sound copy of the LoRA: this one is damaged, or its training failed."
        raise self.file.error(f"{problem} ({some(layers)})", fix)


@dataclass
class _Layer:
    """A module's keys in the file: by part, and how the trainer wrote its path."""

    written: str
    keys: dict[str, str]


def _check_kind(file: SafetensorsFile, statements: LoRAStatements) -> None:
    if statements.reference:
        problem = "is an IC-LoRA, which conditions on a reference video; that is not supported yet"
        raise file.error(f"{problem} (its metadata has {statements.reference})", "Use a plain LoRA.")
    if statements.dora:
        raise file.error("says in its metadata that it is a DoRA, which is not supported", _PLAIN_LORA)


def _layers(file: SafetensorsFile) -> tuple[dict[str, _Layer], tuple[str, ...]]:
    """Layers by path, and the paths in other parts of the model. What is left out may be of any kind."""
    found: dict[str, list[tuple[str, LoRAKey]]] = {}
    for key in file.tensors:
        parsed = parse_key(key)
        found.setdefault(parsed.module, []).append((key, parsed))
    skipped = tuple(name for name in found if other_part(name))
    if not any(parsed.part or parsed.kind not in ("", WHOLE) for keys in found.values() for _, parsed in keys):
        raise file.error(f"is no LoRA: {next(iter(file.tensors), 'an empty file')} is not part of one", _PLAIN_LORA)
    return {name: _layer(keys, file) for name, keys in found.items() if name not in set(skipped)}, skipped


def _layer(found: Sequence[tuple[str, LoRAKey]], file: SafetensorsFile) -> _Layer:
    layer = _Layer(found[0][1].written, {})
    for key, parsed in found:
        if parsed.part is None and parsed.kind:
            raise file.error(f"holds {parsed.kind} ({plain(key, 150)}), which are not supported", _PLAIN_LORA)
        if parsed.part is None:
            raise file.error(f"is no LoRA: {plain(key, 150)} is not part of one", _PLAIN_LORA)
        other = layer.keys.setdefault(parsed.part, key)
        if other != key:
            adapters = sorted({p.adapter for _, p in found})
            several = f" in several adapters ({', '.join(map(repr, adapters))})" if len(adapters) > 1 else ""
            raise file.error(
                f"names the same matrix twice{several}: {plain(other, 150)} and {plain(key, 150)}", _PLAIN_LORA
            )
    return layer


def _nothing(skipped: Sequence[str]) -> str:
    """Why a file without a target is refused."""
    if not skipped:
        return "holds no LoRA matrices"
    parts = sorted({other_part(name) or name for name in skipped})
    return f"changes the {' and the '.join(parts)} only: it changes no layer of the diffusion transformer"


def _target(name: str, layer: _Layer, file: SafetensorsFile) -> LoRATarget:
    keys, shown = layer.keys, plain(name, 150)
    if not {"down", "up"} <= keys.keys():
        raise file.error(f"is incomplete: one of the two matrices of {shown} is missing", "Download the file again.")
    down, up = (file.tensors[keys[part]].shape for part in ("down", "up"))
    if len(down) != 2 or len(up) != 2:
        if len(down) > 2 or len(up) > 2:
            raise file.error(f"changes a convolution ({shown}); the transformer has linear layers only", _PLAIN_LORA)
        raise file.error(f"has matrices that are none at {shown}: {list(down)} and {list(up)}", _PLAIN_LORA)
    if down[0] != up[1] or min(*down, *up) < 1:
        raise file.error(f"has matrices that do not fit at {shown}: {list(down)} and {list(up)}", _PLAIN_LORA)
    alpha = keys.get("alpha")
    if alpha is not None and file.tensors[alpha].shape not in ((), (1,)):
        raise file.error(f"has an alpha that is no single number at {shown}", _PLAIN_LORA)
    if alpha is not None and file.tensors[alpha].dtype not in _ALPHA_DTYPES:
        raise file.error(
            f"has an alpha of a dtype that is not read ({file.tensors[alpha].dtype}) at {shown}", _SAVE_AGAIN
        )
    return LoRATarget(keys["down"], keys["up"], alpha, down[0], down[1], up[0])


def _with_alphas(
    file: SafetensorsFile, statements: LoRAStatements, targets: Mapping[str, LoRATarget], layers: Mapping[str, _Layer]
) -> tuple[dict[str, LoRATarget], tuple[str, ...]]:
    """Targets with the alphas that the metadata states for them, and what is to be said of it.

    A scalar of the file counts before the metadata: trainers that save one have put rsLoRA's root into it.
    """
    open_ones = [name for name, target in targets.items() if target.alpha is None]
    problems = statements.problems
    if problems and open_ones:
        raise file.error(problems[0], _SAVE_AGAIN)
    remarks = [f"its metadata is not used, since each layer has an alpha: it {problem}." for problem in problems]
    if statements.rank_stabilised and len(open_ones) < len(targets):
        remarks.append("the metadata says rsLoRA; the .alpha tensors of the layers are used as they are.")
    if _NAMED_IC_LORA.search(file.path.stem):
        remarks.append("its name says IC-LoRA, which needs a reference video; it acts as a plain LoRA here.")
    found = dict(targets)
    if _is_converted(statements, targets):
        remarks.append(
            f"its trainer saves alpha with each layer, and this file was converted without; {statements.source} is not "
            "used, since converters multiply the matrices by it."
        )
        return found, tuple(remarks)
    differing: list[str] = []
    for name in open_ones:
        names = _spellings(name, layers[name].written)
        found[name] = replace(targets[name], stated=_stated(file, statements, name, names, targets[name].rank))
        if found[name].stated is not None and statements.rank_of(names) not in (None, targets[name].rank):
            differing.append(f"{name} (stated {statements.rank_of(names):g}, is {targets[name].rank})")
    if differing:
        count = f"the metadata states another rank than the matrices of {len(differing)} layers have"
        remarks.append(f"{count}: {some(differing, 2)}; alpha is divided by the matrices' rank.")
    return found, tuple(remarks)


def _is_converted(statements: LoRAStatements, targets: Mapping[str, LoRATarget]) -> bool:
    """Whether a tool for other programs has put alpha into the matrices, and kept the metadata as it was.

    Trainers of kohya's family save lora_down, lora_up and alpha; their converters to lora_A and lora_B drop the last.
    """
    return statements.saves_scalars and all(
        target.alpha is None and ".lora_A" in target.down for target in targets.values()
    )


def _stated(
    file: SafetensorsFile, statements: LoRAStatements, name: str, names: Sequence[str], rank: int
) -> float | None:
    """Alpha of a layer from the metadata. Paths that no transformer has are refused later, whatever alpha they have."""
    if not is_layer(name):
        return None
    try:
        alpha = statements.alpha_of(names, rank)
    except StatementProblem as problem:
        raise file.error(str(problem), _SAVE_AGAIN) from None
    if alpha is not None and alpha > LARGEST_SCALE * rank:
        raise file.error(f"states an alpha of {alpha:g} for a rank of {rank} at {name}", _SAVE_AGAIN)
    return alpha


def _spellings(name: str, written: str) -> tuple[str, ...]:
    """What a pattern in the metadata may call a layer."""
    bare = dict.fromkeys((written, name, diffusers_name(name)))
    return tuple(prefix + path for path in bare for prefix in ("", *PREFIXES[:4]))


def check_fit(lora: LoRAFile, layers: Mapping[str, tuple[int, int]], generation: str) -> tuple[str, ...]:
    """Raises :class:`CheckpointError` unless every target is a layer of the model, in its size.

    Args:
        layers: (out, in) of every linear layer of the DiT by module path.
        generation: of the model.

    Returns:
        Sentences about the file that the user should read.
    """
    strange = [name for name in lora.unknown if name not in layers]
    absent = [name for name in lora.targets if name not in layers and name not in set(strange)]
    wrong = [n for n, t in lora.targets.items() if n in layers and layers[n] != (t.out_features, t.in_features)]
    total, guess = len(lora.targets), lora.generation_guess
    other = guess if guess != generation else None
    if not strange and not absent and not wrong:
        if not other:
            return lora.notices
        # Attention layers are of one size in both generations, only the metadata tells
        made_for = f"{lora.path.name} says that it is made for LTX-{other}, not LTX-{generation}."
        logger.warning("%s", plain(made_for))
        return (*lora.notices, plain(made_for, _LONGEST_NOTICE))
    details = [
        f"{total - len(strange) - len(absent) - len(wrong)} of its {total} targets fit the LTX-{generation} checkpoint"
    ]
    if strange:
        details.append(f"{len(strange)} are layers of no LTX-2 transformer ({_named(strange)})")
    if absent:
        details.append(f"{len(absent)} are no layers of it ({some(absent)})")
    if wrong:
        details.append(f"{len(wrong)} have another size ({some(wrong)})")
    if other:
        details.append(f"it looks like a LoRA for LTX-{other}")
    raise CheckpointError(lora.file.setting, lora.path, "; ".join(details), _fix(generation, other, strange))


def _named(strange: Sequence[str]) -> str:
    """Some names that no LTX-2 transformer has, and whose they are where that is known."""
    model = other_model(f"{name}." for name in strange)
    shown = some([plain(name, 100) for name in strange])
    return f"{shown}: names of {model}" if model else shown


def _fix(generation: str, other: str | None, strange: Sequence[str]) -> str:
    if strange:
        return "Use a LoRA that was trained for LTX-2, with the names of its layers."
    if other:
        return f"Use a LoRA made for LTX-{generation}, or an LTX-{other} checkpoint."
    return f"Use a LoRA made for a checkpoint of this size and generation (LTX-{generation})."
