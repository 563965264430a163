"""Mutated LoRA files: each ends in an error of ours or in a sound file, soon.

``python tests/fuzz/lora_headers.py 2000 [seed]`` tries that many, with the package installed, and exits with 1 where
one did not.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ltx2_two_stage.ltx2_core.errors import LTX2Error
from ltx2_two_stage.ltx2_core.loading.inspect import inspect_file
from ltx2_two_stage.ltx2_core.loading.lora_file import LoRAFile, check_fit

MOST_SECONDS = 2.0
LAYERS = {f"transformer_blocks.{n}.attn1.{p}": (4, 4) for n in range(3) for p in ("to_q", "to_k", "to_v", "to_out.0")}
PREFIXES = (
    "diffusion_model.",
    "transformer.",
    "base_model.model.",
    "",
    "lora_unet_",
    "lora_te_",
    "text_encoders.",
    "x.",
)
ENDS = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_A.default.weight",
    ".lora_down.weight",
    ".lora_up",
    ".alpha",
    ".diff",
)
ENDS = (*ENDS, ".dora_scale", ".lora.up.weight", ".lokr_w1", ".lora_B.bias", ".weight", "", ".lora_A.", "..alpha")
NAMES = ("lora_adapter_metadata", "adapter_config", "peft_config", "ss_network_args", "ss_network_alpha", "config")
NAMES = (
    *NAMES,
    "ss_network_dim",
    "reference_downscale_factor",
    "lora_alpha",
    "r",
    "model_version",
    "format",
    "software",
)
FIELDS = (
    "r",
    "lora_alpha",
    "transformer.r",
    "transformer.lora_alpha",
    "use_rslora",
    "use_dora",
    "transformer",
    "alpha",
)
FIELDS = (*FIELDS, "rank_pattern", "alpha_pattern", "connectors.r", "", ".", "ss_ic_lora_strategy", "a.b.c.d.e.f.g.r")
SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    4,
    8.5,
    1e308,
    10**200,
    float("nan"),
    float("inf"),
    "8",
    "",
    "nan",
    "x" * 300,
)
SCALARS = (*SCALARS, "\x1b[31m", "<b>", "\ud83d", "(a+)+$", "^to_q", "None", "9" * 5000, "[" * 2000, "{}")


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    if depth < 3 and rng.random() < 0.4:
        if rng.random() < 0.2:
            return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
        names = (*FIELDS, "to_q", r"attn1\.to_\d+", ".*", "(")
        return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randrange(5))}
    return rng.choice(SCALARS)


def sound(rng: random.Random) -> tuple[dict[str, tuple[str, list[int]]], dict[str, Any]]:
    """Tensors of a LoRA that is one, as dtype and shape by name, and its metadata."""
    prefix, rank = rng.choice(PREFIXES[:4]), rng.choice((1, 2, 4))
    tensors: dict[str, tuple[str, list[int]]] = {}
    for name in rng.sample(sorted(LAYERS), rng.randrange(1, 5)):
        tensors |= {f"{prefix}{name}{ENDS[0]}": ("F32", [rank, 4]), f"{prefix}{name}{ENDS[1]}": ("F32", [4, rank])}
        if rng.random() < 0.3:
            tensors[f"{prefix}{name}.alpha"] = ("F32", [])
    return tensors, {"lora_adapter_metadata": json.dumps({"transformer.r": rank, "transformer.lora_alpha": 2})}


def _rename(rng: random.Random, tensors: dict[str, Any], _metadata: dict[str, Any]) -> None:
    old = rng.choice(sorted(tensors))
    stem = rng.choice((*LAYERS, "", "proj_out", "a" * 2000, "\x00\x1b", "é.\u202e", "transformer_blocks." + "9" * 300))
    tensors[rng.choice(PREFIXES) + stem + rng.choice(ENDS)] = tensors.pop(old)


def _cut(rng: random.Random, tensors: dict[str, Any], _metadata: dict[str, Any]) -> None:
    old = rng.choice(sorted(tensors))
    start, stop = sorted(rng.randrange(len(old) + 1) for _ in range(2))
    tensors[old[:start] + old[stop:]] = tensors.pop(old)


def _reshape(rng: random.Random, tensors: dict[str, Any], _metadata: dict[str, Any]) -> None:
    shape = [rng.choice((0, 1, 2, 3, 4, 7)) for _ in range(rng.randrange(5))]
    tensors[rng.choice(sorted(tensors))] = (rng.choice(("F32", "BF16", "F16", "F64", "I64", "F8_E4M3", "BOOL")), shape)


def _drop(rng: random.Random, tensors: dict[str, Any], _metadata: dict[str, Any]) -> None:
    tensors.pop(rng.choice(sorted(tensors)))


def _state(rng: random.Random, _tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
    stated = value(rng)
    text = stated if isinstance(stated, str) else json.dumps(stated)
    metadata[rng.choice(NAMES)] = text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text


Change = Callable[[random.Random, dict[str, Any], dict[str, Any]], None]
CHANGES: tuple[Change, ...] = (_rename, _cut, _reshape, _drop, _state, _state, _state, _state)


def mutant(rng: random.Random) -> bytes:
    """A file with up to four changes, now and then with changed bytes."""
    tensors, metadata = sound(rng)
    for _ in range(rng.randrange(5)):
        if tensors:
            rng.choice(CHANGES)(rng, tensors, metadata)
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "F8_E4M3": 1, "BOOL": 1}
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        length = sizes[dtype] * int(torch.Size(shape).numel())
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    file = bytearray(
        struct.pack("<Q", len(text)) + text + (rng.randbytes(offset) if rng.random() < 0.1 else b"\x3f" * offset)
    )
    if rng.random() < 0.15:
        for _ in range(rng.randrange(1, 4)):
            file[rng.randrange(8 + len(text))] = rng.randrange(256)
    return bytes(file)


def outcome(path: Path) -> str:
    """How a file ends: "error" or "sound"; anything else is raised."""
    try:
        inspect_file(path)
        lora = LoRAFile.open(path, "lora")
        check_fit(lora, LAYERS, "2.3")
        read = lora.read("cpu", torch.float32)
    except LTX2Error as error:
        text = str(error)
        assert len(text) <= 4000 and "\x1b" not in text and "<" not in text, text
        text.encode()
        return "error"
    assert set(read) == set(lora.targets)
    assert all(
        weights.down.isfinite().all() and weights.up.isfinite().all() and abs(weights.alpha) < 1e6
        for weights in read.values()
    )
    return "sound"


def run(count: int, seed: int, folder: Path) -> Counter[str]:
    """Tries mutants; the seed of one that ends otherwise is in the error."""
    ends: Counter[str] = Counter()
    for number in range(seed, seed + count):
        path = folder / "mutant.safetensors"
        path.write_bytes(mutant(random.Random(number)))
        begin = time.process_time()
        try:
            ends[outcome(path)] += 1
        except Exception as error:
            raise AssertionError(f"the mutant of seed {number} ended in {type(error).__name__}: {error}") from error
        taken = time.process_time() - begin
        assert taken < MOST_SECONDS, f"the mutant of seed {number} took {taken:.1f} s"
    return ends


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        found = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(name))
    sys.stdout.write(f"{dict(found)}\n")
