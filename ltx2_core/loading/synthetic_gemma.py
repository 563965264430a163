"""A tiny Gemma 3, as a Hugging Face folder or ComfyUI's single file: random weights, and a tokenizer for any text."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..files.saving import save_tensors
from .synthetic_sentencepiece import sentencepiece_model

__all__ = ["TINY_HEADS", "GemmaHeads", "write_single_file", "write_tiny_gemma"]

PREFIX = "language_model.model."  # of the keys in the released repositories
FEED_FORWARD_FACTOR = 4
SLIDING_WINDOW = 64  # shorter than a long prompt, so that local and global layers differ

# As in Gemma's vocabulary: the special tokens come first, then one token per byte for what no other token covers.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
SPACE = "\u2581"
MERGES = (
    (SPACE, "t"),
    (SPACE + "t", "h"),
    (SPACE + "th", "e"),
    (SPACE, "a"),
    (SPACE, "s"),
    (SPACE, "w"),
    (SPACE, "o"),
    (SPACE + "o", "f"),
    ("i", "n"),
    ("in", "g"),
    ("e", "r"),
    ("o", "n"),
    ("a", "n"),
    (SPACE + "a", "n"),
    ("e", "d"),
)


class GemmaHeads(NamedTuple):
    """How the attentions of a text encoder are divided."""

    queries: int
    key_values: int
    width: int


TINY_HEADS = GemmaHeads(queries=4, key_values=2, width=16)


def write_tiny_gemma(
    folder: Path, hidden_size: int, num_layers: int, generator: torch.Generator, heads: GemmaHeads = TINY_HEADS
) -> None:
    """Writes a Gemma 3 that loads like the released one: its configuration, two weight shards and a tokenizer.

    Every second layer is global, the others have a sliding window. The weights are bfloat16 and the activations stay
    O(1) (docs/model.md 11.2); the tokenizer needs no network and falls back to bytes for any UTF-8 text.

    Args:
        folder: created when missing; files of the same names are replaced.
        hidden_size: width of the states.
        num_layers: decoder layers; the text connector then takes ``num_layers + 1`` states.
        generator: on the CPU; its state decides the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    _write_json(folder / "config.json", _config(hidden_size, num_layers, heads, len(vocabulary)))
    _write_weights(folder, _weights(hidden_size, num_layers, heads, len(vocabulary), generator))
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())


def write_single_file(folder: Path, path: Path) -> None:
    """Puts what :func:`write_tiny_gemma` wrote into one file in ComfyUI's layout, the tokenizer inside.

    Such a file carries no configuration: who loads it takes Gemma 3 12B's.
    """
    shards = (load_file(file) for file in sorted(folder.glob("*.safetensors")))
    tensors = {f"model.{key.removeprefix(PREFIX)}": tensor for shard in shards for key, tensor in shard.items()}
    spiece = sentencepiece_model(_vocabulary(), SPECIAL_TOKENS, len(MERGES))
    tensors["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    save_tensors(path, tensors, {"format": "pt"})


def _config(hidden_size: int, num_layers: int, heads: GemmaHeads, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": hidden_size,
            "intermediate_size": FEED_FORWARD_FACTOR * hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": heads.queries,
            "num_key_value_heads": heads.key_values,
            "head_dim": heads.width,
            "query_pre_attn_scalar": heads.width,
            "vocab_size": vocab_size,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)],
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
    }


def _weights(
    hidden: int, num_layers: int, heads: GemmaHeads, vocab_size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    def linear(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, generator=generator) * (0.8 / math.sqrt(inputs))

    def norm(width: int) -> Tensor:
        return torch.randn(width, generator=generator) * 0.2  # Gemma adds 1 to it

    # Gemma multiplies embeddings by sqrt(hidden): they arrive O(1)
    tensors = {"embed_tokens.weight": torch.randn(vocab_size, hidden, generator=generator) / math.sqrt(hidden)}
    queries, keys = heads.queries * heads.width, heads.key_values * heads.width
    for i in range(num_layers):
        layer = {
            "input_layernorm": norm(hidden),
            "self_attn.q_proj": linear(queries, hidden),
            "self_attn.k_proj": linear(keys, hidden),
            "self_attn.v_proj": linear(keys, hidden),
            "self_attn.o_proj": linear(hidden, queries),
            "self_attn.q_norm": norm(heads.width),
            "self_attn.k_norm": norm(heads.width),
            "post_attention_layernorm": norm(hidden),
            "pre_feedforward_layernorm": norm(hidden),
            "mlp.gate_proj": linear(FEED_FORWARD_FACTOR * hidden, hidden),
            "mlp.up_proj": linear(FEED_FORWARD_FACTOR * hidden, hidden),
            "mlp.down_proj": linear(hidden, FEED_FORWARD_FACTOR * hidden),
            "post_feedforward_layernorm": norm(hidden),
        }
        tensors |= {f"layers.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    tensors["norm.weight"] = norm(hidden)
    return {f"{PREFIX}{name}": tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def _write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    names = list(tensors)
    half = len(names) // 2
    shards = {
        "model-00001-of-00002.safetensors": names[:half],
        "model-00002-of-00002.safetensors": names[half:],
    }
    for file, keys in shards.items():
        save_tensors(folder / file, {key: tensors[key].contiguous() for key in keys}, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {key: file for file, keys in shards.items() for key in keys},
    }
    _write_json(folder / "model.safetensors.index.json", index)


def _vocabulary() -> dict[str, int]:
    tokens = [
        *SPECIAL_TOKENS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        SPACE,
        *string.ascii_letters,
        *string.digits,
        *string.punctuation,
        *("".join(merge) for merge in MERGES),
    ]
    return {token: i for i, token in enumerate(tokens)}


def _tokenizer(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """The layout of Gemma's own tokenizer.json: byte-fallback BPE over text whose spaces are replaced."""
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in SPECIAL_TOKENS
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(merge) for merge in MERGES],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
