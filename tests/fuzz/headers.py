"""Mutated headers and configurations of every kind of model file: each is opened or refused, soon and in clear words.

``python tests/fuzz/headers.py [mutants of each kind, 2000] [kinds ...]``, with the package installed, tries them all
and prints what it found; the suite tries some. The same number of a mutant makes the same file again.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ltx2_two_stage.ltx2_core.errors import LTX2Error
from ltx2_two_stage.ltx2_core.loading.inspect import inspect_file
from ltx2_two_stage.ltx2_core.loading.model_set import ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import write_single_file
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource
from safetensors import safe_open
from safetensors.torch import save_file

SECONDS, BYTES = 2.0, 10**9  # of the processor and of memory, that one mutant may take
MUTANTS = 2000

_NEST = "@nest@"
_DIGITS = {f"@{count} digits@": "9" * count for count in (25, 400, 4299, 6000)}
_NESTED: Any = "in"
for _ in range(200):
    _NESTED = [_NESTED]
HOSTILE: tuple[Any, ...] = (
    *(0, 1, -1, 3, 2**31, 10**9, 2**63 - 1, 2**64, 0.5, 1e308, float("inf"), float("nan"), -0.0),
    *("", "x" * 5000, "<img src=x onerror=alert(1)>", "\x1b[31m\x07", "\ud800", "../../etc/passwd", "/dev/zero", "\0"),
    *(None, True, False, [], {}, [1] * 1000, [None], {"a": {}}, _NESTED, _NEST, *_DIGITS),
)

Pairs = list[tuple[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        path: which file is replaced by a mutant.
        use: everything that is done with it before a weight is read.
    """

    path: Path
    use: Callable[[], object]
    original: bytes
    has_header: bool


def kinds(folder: Path) -> dict[str, Kind]:
    """Tiny files of every kind, in a folder of their own."""
    tiny = write_tiny(folder / "tiny")
    with safe_open(tiny.checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata()
    files: dict[str, Path] = {"checkpoint": tiny.checkpoint, "upsampler": tiny.upsampler}
    parts = {"video_vae": "vae.", "audio_vae": ("audio_vae.", "vocoder."), "text_projection": "text_embedding_"}
    for name, start in parts.items():
        files[name] = folder / f"{name}.safetensors"
        save_file({key: tensor for key, tensor in tensors.items() if key.startswith(start)}, files[name], metadata)
    single = folder / "gemma.safetensors"
    write_single_file(tiny.gemma, single)

    def opened(**changes: Path) -> Callable[[], object]:
        chosen: dict[str, Any] = {"checkpoint": tiny.checkpoint, "gemma": tiny.gemma, **changes}
        (changed,) = changes.values()

        def use() -> None:
            inspect_file(changed)
            ModelSet.open(ModelFiles(**chosen), torch.float32)

        return use

    found = {name: _kind(path, opened(**{name: path}), True) for name, path in files.items()}
    found["gemma_file"] = _kind(single, lambda: GemmaSource.open(single).load_tokenizer(), True)
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"):
        found[name] = _kind(tiny.gemma / name, lambda: GemmaSource.open(tiny.gemma).load_tokenizer(), False)
    return found


def _kind(path: Path, use: Callable[[], object], has_header: bool) -> Kind:
    return Kind(path, use, path.read_bytes(), has_header)


def mutant(kind: Kind, number: int) -> bytes:
    """The bytes of a mutant; what follows a header is kept, so that its size is right unless that is what changed."""
    chance = random.Random(number)
    if not kind.has_header:
        return _changed_text(kind.original, chance)
    length = int.from_bytes(kind.original[:8], "little")
    text, data = kind.original[8 : 8 + length], kind.original[8 + length :]
    way = chance.randrange(10)
    if way == 0:
        return kind.original[: chance.randrange(8 + length + 100)]
    if way == 1:
        return _flipped(kind.original[: 8 + length], chance) + data
    if way == 2:
        return kind.original[: chance.randrange(len(kind.original))]
    changed = _flipped(text, chance) if way == 3 else _dump(_changed_header(json.loads(text), chance))
    return len(changed).to_bytes(8, "little") + changed + data


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _changed_header(header: dict[str, Any], chance: random.Random) -> Pairs:
    metadata = dict(header.get("__metadata__", {}))
    if "config" in metadata and chance.random() < 0.6:
        config = json.loads(metadata["config"])
        metadata["config"] = _dump(list(_with_hostile(config, chance).items())).decode()
        return list((header | {"__metadata__": metadata}).items())
    pairs = list(header.items())
    place = chance.randrange(len(pairs))
    name, entry = pairs[place]
    ways: tuple[Callable[[], object], ...] = (
        lambda: pairs.pop(place),
        lambda: pairs.append(pairs[place]),
        lambda: pairs.__setitem__(place, (f"{name}.{chance.randrange(10**8)}", entry)),
        lambda: pairs.__setitem__(place, (name.replace(".0.", ".99999999."), entry)),
        lambda: pairs.__setitem__(place, (name, chance.choice(HOSTILE))),
        lambda: pairs.__setitem__(place, (name, _with_hostile(entry, chance))),
        lambda: pairs.__setitem__(place, (name, _shifted(entry, chance))),
    )
    chance.choice(ways)()
    return pairs


def _shifted(entry: Any, chance: random.Random) -> Any:
    by = chance.choice((1, -1, 8, 2**40))
    return {**entry, "data_offsets": [n + by for n in entry.get("data_offsets", [])]}


def _with_hostile(value: Any, chance: random.Random) -> Any:
    """The value with one thing in it, at any depth, removed or replaced."""
    if isinstance(value, dict) and value:
        key = chance.choice(list(value))
        if not isinstance(value[key], (dict, list)) or chance.random() < 0.2:
            if chance.random() < 0.2:
                return {k: v for k, v in value.items() if k != key}
            return {**value, key: chance.choice(HOSTILE)}
        return {**value, key: _with_hostile(value[key], chance)}
    if isinstance(value, list) and value:
        place = chance.randrange(len(value))
        return [*value[:place], _with_hostile(value[place], chance), *value[place + 1 :]]
    return chance.choice(HOSTILE)


def _dump(pairs: Pairs) -> bytes:
    """As JSON, where a name may come twice."""
    text = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}"
    for name, digits in _DIGITS.items():
        text = text.replace(f'"{name}"', digits).replace(f'\\"{name}\\"', digits)
    return text.replace(f'"{_NEST}"', "[" * 100_000).encode()


def _changed_text(content: bytes, chance: random.Random) -> bytes:
    way = chance.randrange(5)
    if way == 0:
        return content[: chance.randrange(len(content))]
    if way == 1:
        return _flipped(content, chance)
    value = json.loads(content)
    if chance.random() < 0.1:
        return _dump([*value.items(), chance.choice(list(value.items()))])
    return _dump(list(_with_hostile(value, chance).items()))


def outcome(kind: Kind, number: int) -> str:
    """What became of a mutant: ``opened`` or ``refused``.

    Raises:
        AssertionError: it ended in another error, or took too long.
    """
    kind.path.write_bytes(mutant(kind, number))
    start = time.process_time()
    try:
        kind.use()
        result = "opened"
    except LTX2Error as error:
        assert len(str(error)) < 5000 and "<" not in str(error), f"mutant {number}: {str(error)[:500]}"
        result = "refused"
    except BaseException as error:
        raise AssertionError(f"mutant {number} of {kind.path.name}: {type(error).__name__}: {error}") from error
    finally:
        kind.path.write_bytes(kind.original)
    took = time.process_time() - start
    assert took < SECONDS, f"mutant {number} of {kind.path.name} took {took:.1f} s"
    return result


def main(count: int, wanted: list[str]) -> int:
    """Tries ``count`` mutants of each kind; the exit status is the number of failures."""
    folder = Path(tempfile.mkdtemp())
    failures = 0
    try:
        for name, kind in kinds(folder).items():
            if wanted and name not in wanted:
                continue
            results: Counter[str] = Counter()
            start = time.perf_counter()
            for number in range(count):
                try:
                    results[outcome(kind, number)] += 1
                except AssertionError as error:
                    results["failed"] += 1
                    sys.stderr.write(f"{error}\n")
            failures += results["failed"]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            seconds = time.perf_counter() - start
            sys.stdout.write(f"{name}: {dict(results)} in {seconds:.0f} s, at most {peak / 1e9:.2f} GB\n")
            sys.stdout.flush()
            failures += peak > BYTES
    finally:
        shutil.rmtree(folder)
    return failures


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else MUTANTS, sys.argv[2:]))
