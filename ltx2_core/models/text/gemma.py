"""The text encoder: transformers' Gemma 3 text model, from a Hugging Face folder or ComfyUI's single file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import CheckpointError, ConfigError
from ...files.header import SUFFIXES, TensorInfo, foreign
from ...files.json_text import parse_json
from ...files.regular import FileChanged, read_small, unreadable
from ...files.safetensors_file import TORCH_DTYPES
from ...files.stamp import Stamp, stamp_of
from ..meta_device import OnMeta
from ..scaled_weights import FP8_NAME, dequantised
from ..weights_file import WeightsFile
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

INDEX = "model.safetensors.index.json"
_DTYPES = ("BF16", "F16", "F32", FP8_NAME)

# Bytes that the files beside the weights have at most: Gemma 3's tokenizer.json has 33 million, the others 1.2 million
_MOST_JSON = 16 * 2**20
_MOST_TOKENIZER = 256 * 2**20
_MOST_SHARDS = 1000

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
        tokenizer_path: tokenizer.json, tokenizer.model, or the single file itself.
        stamps: of the files beside the weights, None for one that was not there.
    """

    path: Path
    setting: str
    layout: Layout
    config: GemmaConfig
    dtype: torch.dtype
    bytes: int
    parameters: int
    files: Mapping[str, tuple[WeightsFile, str]]
    tokenizer_path: Path
    stamps: Mapping[Path, Stamp | None]

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
        if os.path.isdir(path):  # noqa: PTH112 - pathlib's raises where a folder above cannot be looked into
            return _open_folder(path, setting)
        if not os.path.lexists(path):
            raise CheckpointError(setting, path, "does not exist", _USE_GEMMA)
        return _open_file(path, setting)

    def check_unchanged(self) -> None:
        """Raises :class:`CheckpointError` when one of the files is not the one that was opened."""
        for path, stamp in self.stamps.items():
            if stamp_of(path) != stamp:
                raise unreadable(self.setting, path, FileChanged())
        for file in self._shards:
            file.check_unchanged()

    @property
    def _shards(self) -> list[WeightsFile]:
        return list({id(file): file for file, _ in self.files.values()}.values())

    def load_tokenizer(self) -> PromptTokenizer:
        """Raises :class:`CheckpointError` when the tokenizer cannot be read, changed or belongs to another model."""
        self.check_unchanged()
        try:
            tokenizer = self._read_tokenizer()
            self.check_unchanged()
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

        Raises:
            CheckpointError: a file changed since it was opened, or cannot be read.
        """
        self.check_unchanged()
        with OnMeta():
            model = _text_model(self.config)
        model.load_state_dict(self._read(dtype, torch.device(device)), strict=True, assign=True)
        _compute_buffers(model, torch.device(device))
        log.info("loaded Gemma 3 (%d layers of %d) from %s", self.num_layers, self.hidden_size, self.path)
        return model.eval().requires_grad_(False)

    def _read(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        tensors = {}
        for file in self._shards:
            names = {key: name for name, (home, key) in self.files.items() if home is file}
            factors = {key: scale for key, scale in file.scaled.scales.items() if key in names}
            scales = file.read(factors.values(), device)
            for key, tensor in file.each(names, device):
                factor = scales[factors[key]] if key in factors else None
                tensors[names[key]] = dequantised(tensor, factor, dtype)
        return tensors

    def _read_tokenizer(self) -> PromptTokenizer:
        if self.tokenizer_path.suffix == ".json":
            return PromptTokenizer.from_json(self.tokenizer_path)
        if self.layout == "folder":
            return PromptTokenizer.from_sentencepiece(self.tokenizer_path.read_bytes())
        ((_, model),) = self._shards[0].each([SENTENCEPIECE_KEY])
        return PromptTokenizer.from_sentencepiece(model.numpy().tobytes())


def gemma_hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """All states of one prompt's tokens, as :func:`gemma_states` gives them: (n, D, layers + 1)."""
    return gemma_states(model, [ids])[0]


@torch.no_grad()
def gemma_states(model: nn.Module, prompts: Sequence[Tensor]) -> list[Tensor]:
    """All states of some prompts' tokens, which attend to the tokens before them; in one pass over the weights.

    Only real tokens count: rotary positions are relative, and what fills shorter prompts up stands behind them, where
    no token of theirs looks. So the states are those of a padded row up to rounding (docs/model.md 3.1).

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
        return lambda _layer, inputs: write(index, inputs[0])

    handles = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
    try:
        rows = pad_sequence(list(prompts), batch_first=True)
        write(-1, model(input_ids=rows, use_cache=False).last_hidden_state)
    finally:
        for handle in handles:
            handle.remove()
    return states


def _open_folder(path: Path, setting: str) -> GemmaSource:
    folder = path if _is_there(path / "config.json") else path / "text_encoder"
    if not _is_there(folder / "config.json"):
        raise CheckpointError(setting, path, f"holds no config.json{_gguf(path, setting)}", _USE_GEMMA)
    stamps: dict[Path, Stamp | None] = {}
    text_config = _read_text_config(folder / "config.json", setting, stamps)
    tokenizer = _find_tokenizer(path, folder, setting)
    for file, most in ((tokenizer, _MOST_TOKENIZER), (tokenizer.with_name("tokenizer_config.json"), _MOST_JSON)):
        stamps[file] = _look_at(file, setting, most)
    files = [WeightsFile.open(file, setting) for file in _weight_files(folder, setting, stamps)]
    return _source(path, setting, files, tokenizer, stamps, lambda sizes: GemmaConfig.from_json(sizes, text_config))


def _open_file(path: Path, setting: str) -> GemmaSource:
    file = WeightsFile.open(path, setting)
    source = _source(path, setting, [file], path, {}, GemmaConfig.released)
    if SENTENCEPIECE_KEY not in file.tensors:
        fix = "Use a file in ComfyUI's layout (gemma_3_12B_it.safetensors), or a Hugging Face folder."
        raise CheckpointError(setting, path, f"holds no tokenizer (no tensor {SENTENCEPIECE_KEY})", fix)
    spiece = file.tensors[SENTENCEPIECE_KEY]
    if spiece.dtype != "U8" or spiece.nbytes > _MOST_TOKENIZER:
        problem = f"holds no tokenizer: {SENTENCEPIECE_KEY} is {spiece.dtype} of {spiece.nbytes:,} bytes"
        raise CheckpointError(setting, path, problem, _USE_GEMMA)
    return source


def _source(
    path: Path,
    setting: str,
    files: Sequence[WeightsFile],
    tokenizer: Path,
    stamps: Mapping[Path, Stamp | None],
    configure: Callable[[GemmaSizes], GemmaConfig],
) -> GemmaSource:
    _require_once(files, setting)
    prefix = _prefix(path, setting, files)
    text = {key: (file, info) for file in files for key, info in _text_tensors(file, prefix)}
    if unknown := {info.dtype for _, info in text.values()}.difference(_DTYPES):
        problem = f"holds quantised weights ({', '.join(sorted(unknown))}), which are not supported"
        raise CheckpointError(setting, path, problem, _USE_BF16)
    try:
        config = configure(GemmaSizes.from_shapes({key.removeprefix(prefix): i.shape for key, (_, i) in text.items()}))
    except ConfigError as error:
        value = "" if error.value is None else f" = {error.value!r}"
        raise CheckpointError(
            setting, path, f"is not a Gemma 3 that can be used: {error.key}{value} {error.problem}", _USE_GEMMA
        ) from error
    return GemmaSource(
        path=path,
        setting=setting,
        layout="single file" if tokenizer == path else "folder",
        config=config,
        dtype=TORCH_DTYPES[text[f"{prefix}embed_tokens.weight"][1].dtype],
        bytes=sum(info.nbytes for _, info in text.values()),
        parameters=sum(info.nbytes // TORCH_DTYPES[info.dtype].itemsize for _, info in text.values()),
        files={key.removeprefix(prefix): (file, key) for key, (file, _) in text.items()},
        tokenizer_path=tokenizer,
        stamps=stamps,
    )


def _prefix(path: Path, setting: str, files: Sequence[WeightsFile]) -> str:
    """What precedes the text model's names in these files."""
    for prefix in PREFIXES:
        if any(f"{prefix}embed_tokens.weight" in file.tensors for file in files):
            return prefix
    raise CheckpointError(setting, path, "is not Gemma 3: it has no token embeddings", _USE_GEMMA)


def _text_tensors(file: WeightsFile, prefix: str) -> list[tuple[str, TensorInfo]]:
    starts, beside = tuple(prefix + start for start in TEXT_TENSORS), file.scaled.beside
    return [(key, info) for key, info in file.tensors.items() if key.startswith(starts) and key not in beside]


def _require_once(files: Sequence[WeightsFile], setting: str) -> None:
    """Which of two tensors of one name is meant, nothing says."""
    homes: dict[str, WeightsFile] = {}
    for file in files:
        for name in file.tensors:
            if homes.setdefault(name, file) is not file:
                problem = f"holds {name}, which {homes[name].path.name} holds too"
                raise CheckpointError(setting, file.path, problem, "Keep the files of one download in the folder.")


def _find_tokenizer(path: Path, folder: Path, setting: str) -> Path:
    for place in (folder, path / "tokenizer", folder.parent / "tokenizer"):
        for name in ("tokenizer.json", "tokenizer.model"):
            if _is_there(place / name):
                return place / name
    fix = "Download tokenizer.json or tokenizer.model of the same repository into the folder."
    raise CheckpointError(setting, path, "holds no tokenizer", fix)


def _is_there(path: Path) -> bool:
    """Whether there is something to open; whether it can be, opening it tells."""
    return os.path.lexists(path) and not os.path.isdir(path)  # noqa: PTH112 - never raises


def _look_at(path: Path, setting: str, most: int) -> Stamp | None:
    """The stamp of a file that is read later; None where there is none.

    Raises:
        CheckpointError: it is no file, too large, or what stands for one in a clone.
    """
    if not _is_there(path):
        return None
    content, stamp = read_small(path, setting, most)
    if (found := foreign(content[:64])) and not content.lstrip().startswith(b"{"):
        raise CheckpointError(setting, path, *found)
    return stamp


def _read_text_config(path: Path, setting: str, stamps: dict[Path, Stamp | None]) -> Any:
    config = _read_json(path, setting, stamps)
    kind = config.get("model_type")
    if kind not in ("gemma3", "gemma3_text"):
        raise CheckpointError(setting, path.parent, f"holds a model of type {kind!r}, not Gemma 3", _USE_GEMMA)
    if config.get("quantization_config"):
        fix = "Use google/gemma-3-12b-it-qat-q4_0-unquantized, which is stored in bfloat16."
        raise CheckpointError(setting, path.parent, "holds quantised weights, which are not supported", fix)
    return config.get("text_config", {}) if kind == "gemma3" else config


def _weight_files(folder: Path, setting: str, stamps: dict[Path, Stamp | None]) -> list[Path]:
    index = folder / INDEX
    if _is_there(index):
        files = [folder / name for name in _indexed_names(index, _read_json(index, setting, stamps), setting)]
        if missing := [file.name for file in files if not _is_there(file)]:
            problem = f"lacks {len(missing)} of {len(files)} weight files ({missing[0]})"
            raise CheckpointError(setting, folder, problem, _DOWNLOAD_AGAIN)
        return files
    stamps[index] = None
    files = sorted(file for file in _entries(folder, setting) if file.name.lower().endswith(SUFFIXES))
    if not files:
        raise CheckpointError(setting, folder, f"holds no safetensors file{_gguf(folder, setting)}", _USE_GEMMA)
    if len(files) > 1 and (folder / "model.safetensors") in files:
        return [folder / "model.safetensors"]
    return files


def _gguf(folder: Path, setting: str) -> str:
    """What to say of a folder that holds weights in a format that is not read."""
    found = sorted(file.name for file in _entries(folder, setting) if file.name.lower().endswith(".gguf"))
    return f"; {found[0]} is a GGUF file, which is not read" if found else ""


def _entries(folder: Path, setting: str) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise unreadable(setting, folder, error) from error


def _indexed_names(path: Path, index: Mapping[str, Any], setting: str) -> list[str]:
    """The files that an index lists. Their names lead nowhere else; links that lie in the folder are the user's own."""
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(setting, path, "lists no weight files", _DOWNLOAD_AGAIN)
    names = sorted(set(listed.values()))
    if outside := [name for name in names if not _stays_inside(name)]:
        problem = f"names a weight file that is none of its folder ({outside[0]!r})"
        raise CheckpointError(setting, path, problem, "Use the index that came with the weights.")
    if len(names) > _MOST_SHARDS:
        raise CheckpointError(setting, path, f"lists {len(names):,} weight files", _DOWNLOAD_AGAIN)
    return names


def _stays_inside(name: str) -> bool:
    """Whether a name is one of a file in the folder, or below it, on every system."""
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if "\0" in name or not name.lower().endswith(SUFFIXES) or len(name) > 1000:
        return False
    return not any(kind.anchor or ".." in kind.parts for kind in kinds)


def _read_json(path: Path, setting: str, stamps: dict[Path, Stamp | None]) -> dict[str, Any]:
    content, stamps[path] = read_small(path, setting, _MOST_JSON)
    try:
        value = parse_json(content)
    except ValueError as error:
        problem, fix = foreign(content[:64]) or ("", "")
        if content.lstrip().startswith(b"{") or not problem:
            problem, fix = f"is not JSON ({error})", _DOWNLOAD_AGAIN
        raise CheckpointError(setting, path, problem, fix) from error
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
