"""Some of the mutants of ``tests/fuzz/headers.py``: each is opened or refused, in clear words."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "fuzz" / "headers.py"
KINDS = ("checkpoint", "upsampler", "video_vae", "audio_vae", "text_projection", "gemma_file")
TEXTS = ("config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
# Of each kind; the script makes 2,000. A text encoder alone is opened in a tenth of the time.
MUTANTS, MUTANTS_OF_GEMMA = 12, 60


@pytest.fixture(scope="module")
def headers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_headers", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    module.SECONDS = 60.0  # a loaded machine is no fault; a hang is
    return module


@pytest.fixture(scope="module")
def kinds(headers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(headers.kinds(tmp_path_factory.mktemp("fuzz")))


@pytest.mark.parametrize("name", [*KINDS, *TEXTS])
def test_mutants_are_opened_or_refused(headers: ModuleType, kinds: dict[str, Any], name: str) -> None:
    kind = kinds[name]
    kind.use()  # what is not changed is sound
    count = MUTANTS_OF_GEMMA if name in ("gemma_file", *TEXTS) else MUTANTS
    results = Counter(headers.outcome(kind, number) for number in range(count))
    assert results.keys() <= {"opened", "refused"} and results["refused"]
    assert kind.path.read_bytes() == kind.original


def test_a_mutant_is_the_same_again(headers: ModuleType, kinds: dict[str, Any]) -> None:
    assert kinds.keys() == {*KINDS, *TEXTS}
    for kind in kinds.values():
        made = [headers.mutant(kind, number) for number in range(5)]
        assert made == [headers.mutant(kind, number) for number in range(5)]
        assert len(set(made)) > 1 and any(mutant != kind.original for mutant in made)
