"""What a model file holds, told from its header; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..components import PARTS
from ..errors import CheckpointError, ConfigError
from ..models.scaled_weights import FP8_NAME
from ..models.text.gemma import GemmaSource
from ..models.transformer.config import TransformerConfig
from ..models.upsampler import UpsamplerConfig
from ..models.weights_file import WeightsFile
from ..plain_text import LONGEST_TEXT, plain
from .identify import FileKind, Identity, identify
from .keymaps import component_keys
from .lora_file import LoRAFile

# Settings of a section that say most about a model's size; the others are in the JSON output.
_SUMMARY: Mapping[str, tuple[str, ...]] = {
    "transformer": ("num_layers", "num_attention_heads", "attention_head_dim", "audio_attention_head_dim"),
    "vae": ("latent_channels", "patch_size", "encoder_base_channels", "decoder_base_channels"),
}

_MODEL_KINDS = frozenset(
    {
        FileKind.FULL_MODEL,
        FileKind.TRANSFORMER,
        FileKind.VIDEO_VAE,
        FileKind.AUDIO_VAE,
        FileKind.TEXT_PROJECTION,
    }
)


@dataclass(frozen=True)
class DtypeUse:
    """How many tensors a dtype has, and their bytes."""

    tensors: int
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        kind: of the file, in words.
        generation: "2.0" or "2.3", where the file tells.
        dtypes: by the format's name, most bytes first.
        components: tensors of every part of the model that the file holds, by name.
        details: what only this kind of file has, name to value.
        config: the metadata's model description.
        metadata: the other metadata.
        problem: what makes the file unusable although its header is sound, or None.
    """

    path: Path
    kind: str
    generation: str | None
    model_version: str | None
    tensors: int
    nbytes: int
    dtypes: Mapping[str, DtypeUse]
    components: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            **vars(self),
            "path": str(self.path),
            "dtypes": {dtype: dict(vars(use)) for dtype, use in self.dtypes.items()},
            "components": dict(self.components),
            "details": dict(self.details),
            "config": self.config,
            "metadata": dict(self.metadata),
        }

    def to_text(self) -> str:
        """For a terminal: one fact per line."""
        rows: list[tuple[str, str]] = [("file", str(self.path)), ("kind", self.kind)]
        rows += [("generation", f"LTX-{self.generation}")] if self.generation else []
        rows += [("model version", self.model_version)] if self.model_version else []
        rows.append(("size", f"{_size(self.nbytes)} in {self.tensors:,} tensors"))
        rows += [(dtype, f"{_size(use.nbytes)} in {use.tensors:,} tensors") for dtype, use in self.dtypes.items()]
        rows += [(name, f"{count:,} tensors") for name, count in self.components.items()]
        rows += [(name, _words(value)) for name, value in self.details.items()]
        rows += [("config", line) for line in self._config_lines()]
        rows += [("problem", self.problem)] if self.problem else []
        shown = [(_one_line(name), _one_line(value)) for name, value in rows]
        width = max(len(name) for name, _ in shown)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)

    def _config_lines(self) -> list[str]:
        if self.config is None:
            return ["none"] if self.components else []
        lines = []
        for section, values in self.config.items():
            chosen = [k for k in _SUMMARY.get(section, ()) if isinstance(values, Mapping) and k in values]
            facts = ", ".join(f"{key} {values[key]}" for key in chosen)
            if isinstance(values, Mapping):
                lines.append(f"{section}: {facts or f'{len(values)} settings'}")
            else:
                lines.append(f"{section}: {values}")
        return lines


def inspect_file(path: Path) -> Inspection:
    """Reads a file's header, or the headers of a Gemma folder.

    Raises:
        CheckpointError: the path is missing, damaged, or neither a safetensors file nor a Gemma folder.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect_folder(path)
    file = WeightsFile.open(path, "file")
    identity = identify(file)
    uses: dict[str, list[int]] = {}
    for info in file.tensors.values():
        uses.setdefault(info.dtype, []).append(info.nbytes)
    dtypes = {dtype: DtypeUse(len(sizes), sum(sizes)) for dtype, sizes in uses.items()}
    generation, details, problem = _describe(file, identity)
    return Inspection(
        path=path,
        kind=str(identity),
        generation=generation,
        model_version=file.model_version,
        tensors=len(file.tensors),
        nbytes=file.nbytes,
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1].nbytes)),
        components=_components(file, identity),
        details=details,
        config=file.config,
        metadata={key: value for key, value in file.metadata.items() if key != "config"},
        problem=problem,
    )


def _one_line(text: str) -> str:
    return plain(" ".join(text.splitlines()), LONGEST_TEXT)


def _components(file: WeightsFile, identity: Identity) -> dict[str, int]:
    if identity.kind not in _MODEL_KINDS:
        return {}
    counts = {c.value.replace("_", " "): len(component_keys(c, file.tensors)) for c in PARTS}
    return {name: count for name, count in counts.items() if count}


def _describe(file: WeightsFile, identity: Identity) -> tuple[str | None, dict[str, Any], str | None]:
    """Generation, details and problem."""
    try:
        if identity.kind is FileKind.LORA:
            lora = LoRAFile.parse(file)
            return lora.generation_guess, _lora_details(lora), None
        if identity.kind is FileKind.UPSAMPLER:
            shapes = {name: info.shape for name, info in file.tensors.items()}
            upsampler = UpsamplerConfig.from_metadata(file.config, shapes)
            return _version_generation(file), {"upsampler": upsampler.kind.value}, None
        details = _fp8_details(file)
        if identity.kind in _MODEL_KINDS and file.config is not None and "transformer" in file.config:
            return TransformerConfig.from_metadata(file.config).generation, details, None
        return _version_generation(file), details, None
    except (CheckpointError, ConfigError) as error:
        return _version_generation(file), {}, error.problem


def _lora_details(lora: LoRAFile) -> dict[str, Any]:
    facts = {
        "targets": len(lora.targets),
        "rank": list(lora.ranks),
        "alpha": lora.has_alpha,
        "parameters": lora.parameters,
        "left out": list(lora.skipped),
    }
    said: dict[str, Any] = {
        "alpha from": lora.alpha_source,
        "stated alpha": sorted({t.stated for t in lora.targets.values() if t.stated is not None and not t.alpha}),
        "rsLoRA": lora.statements.rank_stabilised,
        "trainer": lora.statements.trainer,
        "layers of no LTX-2 transformer": list(lora.unknown),
        "note": list(lora.remarks),
    }
    return {**facts, **{name: value for name, value in said.items() if value}}


def _fp8_details(file: WeightsFile) -> dict[str, Any]:
    """Of a file with fp8 weights: in whose layout they are, and how many layers have them."""
    if file.scaled.layout is None:
        return {}
    layers = [n for n, info in file.tensors.items() if info.dtype == FP8_NAME and n.endswith(".weight")]
    return {"fp8 layout": file.scaled.layout, "fp8 layers": len(layers)}


def _version_generation(file: WeightsFile) -> str | None:
    version = file.model_version or ""
    return next((generation for generation in ("2.3", "2.0") if version.startswith(generation)), None)


def _inspect_folder(path: Path) -> Inspection:
    gemma = GemmaSource.open(path, "file")
    facts = {"hidden size": gemma.hidden_size, "layers": gemma.num_layers}
    dtype = str(gemma.dtype).removeprefix("torch.")
    tensors = len(gemma.files)
    uses = {dtype: DtypeUse(tensors, gemma.bytes)}
    return Inspection(path, FileKind.GEMMA.value, None, None, tensors, gemma.bytes, uses, details=facts)


def _size(nbytes: int) -> str:
    value, unit = float(nbytes), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.2f} {unit}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
