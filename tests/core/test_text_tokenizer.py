"""Prompts to token ids, from tokenizer.json and from SentencePiece models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import write_tiny_gemma
from ltx2_two_stage.ltx2_core.models.text.tokenizer import PromptTokenizer, TokenizedPrompt

BOS = 2
TEXTS = [
    "A cat walks on the water",
    "two  spaces, a tab\tand\n\na paragraph",
    "héllo wörld, 世界 🎬",
    "<eos> written out",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_gemma(folder, hidden_size=8, num_layers=1, generator=torch.Generator().manual_seed(0))
    return folder


@pytest.fixture(params=["json", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    if request.param == "json":
        return PromptTokenizer.from_json(request.getfixturevalue("folder") / "tokenizer.json")
    return PromptTokenizer.from_sentencepiece(request.getfixturevalue("spiece_model"))


@pytest.mark.parametrize("text", TEXTS)
def test_json_equals_transformers(folder: Path, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    expected = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)(text.strip()).input_ids
    assert PromptTokenizer.from_json(folder / "tokenizer.json").encode(text).ids == expected


@pytest.mark.parametrize("text", TEXTS)
def test_one_beginning_and_no_end(tokenizer: PromptTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokens.ids[0] == BOS == tokenizer.bos
    assert BOS not in tokens.ids[1:]
    assert tokens.ids[-1] != 1
    assert max(tokens.ids) < tokenizer.size
    assert 3 not in tokens.ids  # no text is unknown
    assert tokens.truncated_from is None


def test_empty_text_is_the_beginning_alone(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode("") == tokenizer.encode(" \n") == TokenizedPrompt([BOS])


def test_surrounding_white_space_is_dropped_and_inner_kept(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode("  a  cat\n") == tokenizer.encode("a  cat")
    assert tokenizer.encode("a  cat") != tokenizer.encode("a cat")


def test_beginning_written_out_is_not_doubled(folder: Path) -> None:
    tokenizer = PromptTokenizer.from_json(folder / "tokenizer.json")
    assert tokenizer.encode("<bos><bos>the cat") == tokenizer.encode("the cat")


def test_long_prompt_is_cut_at_its_end(tokenizer: PromptTokenizer) -> None:
    whole = tokenizer.encode("the cat walks " * 40)
    count = len(whole.ids)
    assert whole.truncated_from is None
    assert tokenizer.encode("the cat walks " * 40, max_tokens=count) == whole
    cut = tokenizer.encode("the cat walks " * 40, max_tokens=count - 1)
    assert cut == TokenizedPrompt(whole.ids[:-1], truncated_from=count)


def test_ids_as_tensor() -> None:
    tensor = TokenizedPrompt([2, 5, 7]).tensor("cpu")
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [2, 5, 7]


def test_truncation_and_padding_in_the_file_are_ignored(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    plain = PromptTokenizer.from_json(folder / "tokenizer.json")
    assert PromptTokenizer.from_json(tmp_path / "tokenizer.json").encode("the cat, on") == plain.encode("the cat, on")


def test_beginning_token_is_the_one_that_the_configuration_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<eos>"}}))
    assert PromptTokenizer.from_json(tmp_path / "tokenizer.json").bos == 1
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<start>"}))
    with pytest.raises(ValueError, match="<start>"):
        PromptTokenizer.from_json(tmp_path / "tokenizer.json")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match="not a tokenizer"):
        PromptTokenizer.from_json(tmp_path / "tokenizer.json")
    pytest.importorskip("sentencepiece")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        PromptTokenizer.from_sentencepiece(b"\x00\x01nothing")
