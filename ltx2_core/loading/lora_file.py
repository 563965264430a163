"""LoRA files of every known key format, read as targets under official module names (fact sheet 9)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..plain_text import plain
from . import keymaps
from .checkpoint import SafetensorsFile
from .listing import some

logger = logging.getLogger("ltx2.loading")

_LONGEST_NOTICE = 400  # characters: a few lines on a node
_PLAIN_LORA = "Use a plain LoRA file for LTX-2, with lora_A/lora_B or lora_down/lora_up matrices."


@dataclass(frozen=True)
class LoRATarget:
    """The change of one linear layer: W + strength * alpha / rank * up @ down.

    Attributes:
        down, up: names of the matrices [rank, in] and [out, rank] in the file.
        alpha: name of the scalar in the file; None: alpha equals the rank.
    """

    down: str
    up: str
    alpha: str | None
    rank: int
    in_features: int
    out_features: int


class LoRAWeights(NamedTuple):
    down: Tensor
    up: Tensor
    alpha: float


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA whose header was read.

    Attributes:
        targets: official module path in the DiT -> what changes it.
        skipped: targets outside the DiT, which are left out.
    """

    file: SafetensorsFile
    targets: Mapping[str, LoRATarget]
    skipped: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, setting: str) -> LoRAFile:
        """Reads the header only; targets outside the DiT are left out, and :attr:`notices` say so.

        Raises:
            CheckpointError: no sound safetensors file, no LoRA, a kind of adapter that is not supported, or matrices
                that do not fit each other.
        """
        found = cls.parse(SafetensorsFile.open(path, setting))
        for notice in found.notices:
            logger.warning("%s", notice)
        return found

    @classmethod
    def parse(cls, file: SafetensorsFile) -> LoRAFile:
        """:meth:`open` for a file that is open; says nothing of what is left out."""
        if "reference_downscale_factor" in file.metadata:
            problem = "is an IC-LoRA, which conditions on a reference video; that is not supported yet"
            raise file.error(problem, "Use a plain LoRA.")
        targets, skipped = _targets(file)
        if not targets:
            problem = "changes no layer of the diffusion transformer" if skipped else "holds no LoRA matrices"
            raise file.error(problem, _PLAIN_LORA)
        file.require_plain(key for target in targets.values() for key in (target.down, target.up))
        return cls(file, targets, skipped)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences that the user should read: what of the file is left out."""
        if not self.skipped:
            return ()
        count = f"{len(self.skipped)} targets outside the diffusion transformer are left out"
        return (plain(f"{self.path.name}: {count}: {some(self.skipped)}.", _LONGEST_NOTICE),)

    @property
    def has_alpha(self) -> bool:
        return any(target.alpha for target in self.targets.values())

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
        names = (*self.targets, *self.skipped)
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
        """All matrices, on ``device`` in ``dtype``; every tensor is read once."""
        matrices = self.file.read([key for t in self.targets.values() for key in (t.down, t.up)], device, dtype)
        scalars = self.file.read([t.alpha for t in self.targets.values() if t.alpha], "cpu", torch.float32)
        return {
            name: LoRAWeights(matrices[t.down], matrices[t.up], float(scalars[t.alpha]) if t.alpha else float(t.rank))
            for name, t in self.targets.items()
        }


def _targets(file: SafetensorsFile) -> tuple[dict[str, LoRATarget], tuple[str, ...]]:
    entries: dict[str, dict[str, str]] = {}
    for key in file.tensors:
        module, part = _split(key, file)
        if entries.setdefault(_module_name(module), {}).setdefault(part, key) != key:
            raise file.error(
                f"names the same matrix twice: {entries[_module_name(module)][part]} and {key}", _PLAIN_LORA
            )
    skipped = tuple(name for name in entries if name.startswith(keymaps.LORA_TEXT_TARGETS))
    targets = {name: _target(name, keys, file) for name, keys in entries.items() if name not in skipped}
    return targets, skipped


def _split(key: str, file: SafetensorsFile) -> tuple[str, str]:
    """Module and part ("down", "up", "alpha") of a key."""
    for end, part in keymaps.LORA_ENDS.items():
        if key.endswith(end):
            return key[: -len(end)], part
    for end, kind in keymaps.OTHER_ADAPTERS.items():
        if key.endswith(end):
            raise file.error(f"holds {kind} ({key}), which are not supported", _PLAIN_LORA)
    raise file.error(f"is no LoRA: {key} is not part of one", _PLAIN_LORA)


def _module_name(module: str) -> str:
    """Official module path from any format's."""
    if module.startswith(keymaps.UNDERSCORE_PREFIX):
        module = keymaps.dotted_name(module[len(keymaps.UNDERSCORE_PREFIX) :])
    for prefix in keymaps.LORA_PREFIXES:
        module = module.removeprefix(prefix)
    return keymaps.official_name(module)


def _target(name: str, keys: Mapping[str, str], file: SafetensorsFile) -> LoRATarget:
    if not {"down", "up"} <= keys.keys():
        raise file.error(f"is incomplete: one of the two matrices of {name} is missing", "Download the file again.")
    down, up = (file.tensors[keys[part]].shape for part in ("down", "up"))
    if len(down) != 2 or len(up) != 2:
        raise file.error(f"changes a convolution ({name}); the transformer has linear layers only", _PLAIN_LORA)
    if down[0] != up[1] or down[0] < 1:
        raise file.error(f"has matrices that do not fit at {name}: {list(down)} and {list(up)}", _PLAIN_LORA)
    alpha = keys.get("alpha")
    if alpha is not None and file.tensors[alpha].shape not in ((), (1,)):
        raise file.error(f"has an alpha that is no single number at {name}", _PLAIN_LORA)
    return LoRATarget(keys["down"], keys["up"], alpha, down[0], down[1], up[0])


def check_fit(lora: LoRAFile, layers: Mapping[str, tuple[int, int]], generation: str) -> tuple[str, ...]:
    """Raises :class:`CheckpointError` unless every target is a layer of the model, in its size.

    Args:
        layers: (out, in) of every linear layer of the DiT by module path.
        generation: of the model.

    Returns:
        Sentences about the file that the user should read.
    """
    absent = [name for name in lora.targets if name not in layers]
    wrong = [n for n, t in lora.targets.items() if n in layers and layers[n] != (t.out_features, t.in_features)]
    total, guess = len(lora.targets), lora.generation_guess
    other = guess if guess != generation else None
    if not absent and not wrong:
        if not other:
            return lora.notices
        # Attention layers are of one size in both generations, only the metadata tells
        made_for = f"{lora.path.name} says that it is made for LTX-{other}, not LTX-{generation}."
        logger.warning("%s", plain(made_for))
        return (*lora.notices, plain(made_for, _LONGEST_NOTICE))
    details = [f"{total - len(absent) - len(wrong)} of its {total} targets fit the LTX-{generation} checkpoint"]
    if absent:
        details.append(f"{len(absent)} are no layers of it ({some(absent)})")
    if wrong:
        details.append(f"{len(wrong)} have another size ({some(wrong)})")
    if other:
        details.append(f"it looks like a LoRA for LTX-{other}")
    fix = f"Use a LoRA made for LTX-{generation}" + (f", or an LTX-{other} checkpoint." if other else ".")
    raise CheckpointError(lora.file.setting, lora.path, "; ".join(details), fix)
