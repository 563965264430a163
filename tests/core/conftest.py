"""What several tests of the engine need."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

# Test modules in importlib mode have no package to import ``tiny_stage`` from
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def spiece_model() -> bytes:
    """A SentencePiece model with Gemma's settings: byte fallback, no normalisation, white space kept."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat walks on the water and the dog sleeps in the house"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return model.getvalue()
