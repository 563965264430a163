"""The text encoder: transformers' Gemma 3 text model, from a Hugging Face folder or ComfyUI's single file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import CheckpointError, ConfigError
from ..scaled_weights import FP8_NAME, ScaledWeights, ScaledWeightsError, dequantised
from .gemma_config import SLIDING, GemmaConfig, GemmaSizes
from .tokenizer import PromptTokenizer, TokenizedPrompt

__all__ = ["GemmaSource", "PromptTokenizer", "TokenizedPrompt", "gemma_hidden_states", "gemma_states"]

log = logging.getLogger("ltx2.text")

Layout = Literal["folder", "single file"]

# What precedes the text model's own tensor names: official repositories, transformers 4.52 and later, inner models,
# text-only models and ComfyUI's single file, a bare text model.
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.", "")
TEXT_TENSORS = ("embed_tokens.", "layers.", "norm.")
SENTENCEPIECE_KEY = "spiece_model"

DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    FP8_NAME: torch.float8_e4m3fn,
}

_USE_GEMMA = "Use Gemma 3 12B: the folder of google/gemma-3-12b-it-qat-q4_0-unquantized, or gemma_3_12B_it.safetensors."
_USE_BF16 = "Use the bfloat16 file (gemma_3_12B_it.safetensors) or a Hugging Face folder in bfloat16."
_DOWNLOAD_AGAIN = "The download is incomplete; download it again."


@dataclass(frozen=True)
class GemmaSource:
    """Where a Gemma 3 lies and what its headers say; opening it reads no weight.

    Attributes:
        setting: the setting that named it, for errors.
        dtype: of the largest tensor, the embeddings.
        bytes: size of the text model's tensors, as stored.
        parameters: how many numbers these are.
        files: text model's tensor name to file and name there.
        scales: text model's fp8 tensor to the name of its scale in the same file.
        tokenizer_path: tokenizer.json, tokenizer.model, or the single file itself.
    """

    path: Path
    setting: str
    layout: Layout
    config: GemmaConfig
    dtype: torch.dtype
    bytes: int
    parameters: int
    files: Mapping[str, tuple[Path, str]]
    scales: Mapping[str, str]
    tokenizer_path: Path

    @property
    def hidden_size(self) -> int:
        """D, width of every state."""
        return self.config.sizes.hidden_size

    @property
    def num_layers(self) -> int:
        """One less than L of the text connector, which takes the embeddings too."""
        return self.config.sizes.num_layers

    @classmethod
    def open(cls, path: Path, setting: str = "gemma") -> GemmaSource:
        """Reads the headers and the configuration.

        Args:
            path: a Hugging Face folder (its own, or a pipeline's with ``text_encoder`` and ``tokenizer`` in it), or a
                single safetensors file as ComfyUI has it, with the tokenizer inside.

        Raises:
            CheckpointError: nothing is there, it is truncated, quantised, without tokenizer, or another model.
        """
        path = Path(path)
        if path.is_dir():
            return _open_folder(path, setting)
        if path.is_file():
            return _open_file(path, setting)
        raise CheckpointError(setting, path, "does not exist", _USE_GEMMA)

    def load_tokenizer(self) -> PromptTokenizer:
        """Raises :class:`CheckpointError` when the tokenizer cannot be read or belongs to another model."""
        try:
            tokenizer = self._read_tokenizer()
        except ValueError as error:
            fix = "Use a Gemma 3 folder with tokenizer.json, or install sentencepiece (pip install sentencepiece)."
            raise CheckpointError(
                self.setting, self.tokenizer_path, f"cannot be used as tokenizer: {error}", fix
            ) from error
        vocab_size = self.config.sizes.vocab_size
        if tokenizer.size > vocab_size:
            problem = f"has {tokenizer.size} tokens, but the model has {vocab_size} embeddings"
            raise CheckpointError(
                self.setting, self.tokenizer_path, problem, "Use the tokenizer and the model of one release."
            )
        return tokenizer

    def load_model(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The text model without head and vision tower, for inference; weights are read straight to ``device``.

        Those that are stored in fp8 are dequantised there, one by one.
        """
        with torch.device("meta"):
            model = _text_model(self.config)
        model.load_state_dict(self._read(dtype, torch.device(device)), strict=True, assign=True)
        _compute_buffers(model, torch.device(device))
        log.info("loaded Gemma 3 (%d layers of %d) from %s", self.num_layers, self.hidden_size, self.path)
        return model.eval().requires_grad_(False)

    def _read(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        tensors = {}
        for file in dict.fromkeys(file for file, _ in self.files.values()):
            try:
                with safe_open(file, framework="pt", device=str(device)) as shard:
                    for name, (home, key) in self.files.items():
                        if home == file:
                            scale = self.scales.get(name)
                            factor = None if scale is None else shard.get_tensor(scale)
                            tensors[name] = dequantised(shard.get_tensor(key), factor, dtype)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(self.setting, file, f"cannot be read ({error})", _DOWNLOAD_AGAIN) from error
        return tensors

    def _read_tokenizer(self) -> PromptTokenizer:
        if self.tokenizer_path.suffix == ".json":
            return PromptTokenizer.from_json(self.tokenizer_path)
        if self.layout == "folder":
            return PromptTokenizer.from_sentencepiece(self.tokenizer_path.read_bytes())
        with safe_open(self.tokenizer_path, framework="pt") as file:
            return PromptTokenizer.from_sentencepiece(file.get_tensor(SENTENCEPIECE_KEY).numpy().tobytes())


def gemma_hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """All states of one prompt's tokens, as :func:`gemma_states` gives them: (n, D, layers + 1)."""
    return gemma_states(model, [ids])[0]


@torch.no_grad()
def gemma_states(model: nn.Module, prompts: Sequence[Tensor]) -> list[Tensor]:
    """All states of some prompts' tokens, which attend to the tokens before them; in one pass over the weights.

    Only real tokens count: rotary positions are relative, and what fills shorter prompts up stands behind them, where
    no token of theirs looks. So the states are those of a padded row up to rounding (fact sheet 3.1).

    Args:
        model: as :meth:`GemmaSource.load_model` returns it.
        prompts: (n,) token ids each, all on one device.

    Returns:
        For each prompt (n, D, layers + 1) in the model's dtype: the scaled embeddings, the outputs of all layers but
        the last, and the last one's output after the final norm.
    """
    layers = list(model.get_submodule("layers").children())
    embeddings = model.get_parameter("embed_tokens.weight")
    # On the tokens' device: weights that stream come to it only while their layer computes
    states = [
        torch.empty(len(ids), embeddings.shape[1], len(layers) + 1, dtype=embeddings.dtype, device=ids.device)
        for ids in prompts
    ]

    def write(index: int, batch: Tensor) -> None:
        for kept, row in zip(states, batch, strict=True):
            kept[..., index] = row[: len(kept)]

    # The order and the number of transformers' own hidden_states has changed between versions; a layer's input has not.
    def keep(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda layer, inputs: write(index, inputs[0])

    handles = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
    try:
        rows = pad_sequence(list(prompts), batch_first=True)
        write(-1, model(input_ids=rows, use_cache=False).last_hidden_state)
    finally:
        for handle in handles:
            handle.remove()
    return states


@dataclass(frozen=True)
class _Tensor:
    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass
class _Stored:
    """Everything in one file or several.

    Attributes:
        scales: name of an fp8 tensor to that of its scale.
        beside: scales and markers.
    """

    tensors: dict[str, _Tensor] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)

    def add(self, other: _Stored) -> None:
        self.tensors |= other.tensors
        self.scales |= other.scales
        self.beside |= other.beside


def _open_folder(path: Path, setting: str) -> GemmaSource:
    folder = path / "text_encoder" if not (path / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise CheckpointError(setting, path, "holds no config.json", _USE_GEMMA)
    text_config = _read_text_config(folder / "config.json", setting)
    tokenizers = (
        place / name
        for place in (folder, path / "tokenizer", folder.parent / "tokenizer")
        for name in ("tokenizer.json", "tokenizer.model")
    )
    tokenizer = next((file for file in tokenizers if file.is_file()), None)
    if tokenizer is None:
        fix = "Download tokenizer.json or tokenizer.model of the same repository into the folder."
        raise CheckpointError(setting, path, "holds no tokenizer", fix)
    stored = _Stored()
    for file in _weight_files(folder, setting):
        stored.add(_read_header(file, setting))
    return _source(path, setting, "folder", stored, tokenizer, lambda sizes: GemmaConfig.from_json(sizes, text_config))


def _open_file(path: Path, setting: str) -> GemmaSource:
    stored = _read_header(path, setting)
    source = _source(path, setting, "single file", stored, path, GemmaConfig.released)
    if SENTENCEPIECE_KEY not in stored.tensors:
        fix = "Use a file in ComfyUI's layout (gemma_3_12B_it.safetensors), or a Hugging Face folder."
        raise CheckpointError(setting, path, f"holds no tokenizer (no tensor {SENTENCEPIECE_KEY})", fix)
    return source


def _source(
    path: Path,
    setting: str,
    layout: Layout,
    stored: _Stored,
    tokenizer: Path,
    configure: Callable[[GemmaSizes], GemmaConfig],
) -> GemmaSource:
    prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in stored.tensors), None)
    if prefix is None:
        raise CheckpointError(setting, path, "is not Gemma 3: it has no token embeddings", _USE_GEMMA)
    starts = tuple(prefix + start for start in TEXT_TENSORS)
    text = {k: t for k, t in stored.tensors.items() if k.startswith(starts) and k not in stored.beside}
    if unknown := {tensor.dtype for tensor in text.values()} - DTYPES.keys():
        problem = f"holds quantised weights ({', '.join(sorted(unknown))}), which are not supported"
        raise CheckpointError(setting, path, problem, _USE_BF16)
    shapes = {key.removeprefix(prefix): tensor.shape for key, tensor in text.items()}
    sizes = {key: torch.Size(tensor.shape).numel() for key, tensor in text.items()}
    try:
        config = configure(GemmaSizes.from_shapes(shapes))
    except ConfigError as error:
        value = "" if error.value is None else f" = {error.value!r}"
        raise CheckpointError(
            setting, path, f"is not a Gemma 3 that can be used: {error.key}{value} {error.problem}", _USE_GEMMA
        ) from error
    return GemmaSource(
        path=path,
        setting=setting,
        layout=layout,
        config=config,
        dtype=DTYPES[text[f"{prefix}embed_tokens.weight"].dtype],
        bytes=sum(sizes[key] * DTYPES[tensor.dtype].itemsize for key, tensor in text.items()),
        parameters=sum(sizes.values()),
        files={key.removeprefix(prefix): (tensor.file, key) for key, tensor in text.items()},
        scales={key.removeprefix(prefix): scale for key, scale in stored.scales.items() if key in text},
        tokenizer_path=tokenizer,
    )


def _read_text_config(path: Path, setting: str) -> Any:
    config = _read_json(path, setting)
    kind = config.get("model_type")
    if kind not in ("gemma3", "gemma3_text"):
        raise CheckpointError(setting, path.parent, f"holds a model of type {kind!r}, not Gemma 3", _USE_GEMMA)
    if config.get("quantization_config"):
        fix = "Use google/gemma-3-12b-it-qat-q4_0-unquantized, which is stored in bfloat16."
        raise CheckpointError(setting, path.parent, "holds quantised weights, which are not supported", fix)
    return config.get("text_config", {}) if kind == "gemma3" else config


def _weight_files(folder: Path, setting: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index, setting).get("weight_map")
        if not isinstance(names, dict):
            raise CheckpointError(setting, index, "lists no weight files", _DOWNLOAD_AGAIN)
        files = [folder / name for name in sorted(set(names.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            problem = f"lacks {len(missing)} of {len(files)} weight files ({missing[0]})"
            raise CheckpointError(setting, folder, problem, _DOWNLOAD_AGAIN)
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(setting, folder, "holds no safetensors file", _USE_GEMMA)
    if len(files) > 1 and (folder / "model.safetensors") in files:
        return [folder / "model.safetensors"]
    return files


def _read_header(path: Path, setting: str) -> _Stored:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            tensors = {name: _Tensor(path, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
            scaled = ScaledWeights.find(
                tensors, file.metadata() or {}, lambda name: file.get_tensor(name).numpy().tobytes()
            )
    except (SafetensorError, OSError) as error:
        problem = f"is truncated, or not a safetensors file ({error})"
        raise CheckpointError(setting, path, problem, "Download it again; only safetensors files are read.") from error
    except ScaledWeightsError as error:
        raise CheckpointError(setting, path, error.problem, error.fix) from error
    return _Stored(tensors, dict(scaled.scales), set(scaled.beside))


def _read_json(path: Path, setting: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(setting, path, f"cannot be read ({error})", "Check the file's permissions.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(setting, path, f"is not JSON ({error})", _DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(setting, path, "is not a JSON object", _DOWNLOAD_AGAIN)
    return value


def _text_model(config: GemmaConfig) -> nn.Module:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    model = Gemma3TextModel(Gemma3TextConfig(**config.arguments()))
    wanted = [kind == SLIDING for kind in config.layer_types]
    if [
        getattr(layer.self_attn, "is_sliding", kind) for layer, kind in zip(model.layers, wanted, strict=True)
    ] != wanted:
        raise RuntimeError("this version of transformers cannot lay the layers out as the file says: use 4.53 or newer")
    return model


def _compute_buffers(model: nn.Module, device: torch.device) -> None:
    """Replaces what a model built on the meta device lacks and no file holds: rotary frequencies, embedding scale."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding, Gemma3TextScaledWordEmbedding

    for name, module in list(model.named_modules()):
        if isinstance(module, Gemma3RotaryEmbedding):
            # Its own config: in transformers 4 the local and the global one differ in it
            model.set_submodule(name, Gemma3RotaryEmbedding(module.config).to(device))
        elif isinstance(module, Gemma3TextScaledWordEmbedding):
            if "embed_scale" not in dict(module.named_buffers()):
                continue  # a plain number, before transformers 4.51
            scale = torch.tensor(module.embedding_dim**0.5, device=device)
            module.register_buffer("embed_scale", scale, persistent=False)
    if left := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise RuntimeError(f"this version of transformers has buffers that are not in the file: {', '.join(left)}")
