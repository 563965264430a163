"""Prompts to Gemma's token ids: from tokenizer.json or from a SentencePiece model, without the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...files.json_text import parse_json

BOS = "<bos>"


@dataclass(frozen=True)
class TokenizedPrompt:
    """Token ids of one prompt, beginning-of-sequence first, without padding.

    Attributes:
        truncated_from: how many tokens the whole prompt has, when it was cut.
    """

    ids: list[int]
    truncated_from: int | None = None

    def tensor(self, device: torch.device | str | None = None) -> Tensor:
        """(n,) int64."""
        return torch.tensor(self.ids, dtype=torch.int64, device=device)


class PromptTokenizer:
    """Gemma's tokenizer as LTX-2 uses it: no chat template, one beginning token, no end token (docs/model.md 3.1).

    Args:
        split: text to ids, special tokens written in the text included, none added.
        bos: id of the beginning token.
        size: number of ids.
    """

    def __init__(self, split: Callable[[str], list[int]], bos: int, size: int) -> None:
        self._split, self.bos, self.size = split, bos, size

    @classmethod
    def from_json(cls, path: Path) -> PromptTokenizer:
        """Reads tokenizer.json.

        Raises:
            ValueError: the file is not a tokenizer, or it has no beginning token.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and what it did not expect is no Exception
            raise ValueError(f"it is not a tokenizer ({error})") from error
        # A file may come with truncation and padding switched on; both are ours to decide.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        bos = tokenizer.token_to_id(_bos_token(path.parent))
        if bos is None:
            raise ValueError(f"it has no {_bos_token(path.parent)} token")

        def split(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        # Ids can have gaps, and the largest one needs an embedding too
        return cls(split, bos, 1 + max(tokenizer.get_vocab(with_added_tokens=True).values()))

    @classmethod
    def from_sentencepiece(cls, model: bytes) -> PromptTokenizer:
        """Takes a serialised SentencePiece model, as in tokenizer.model.

        Raises:
            ValueError: the bytes are not a model, it has no beginning token, or sentencepiece is not installed.
        """
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ValueError("it needs the package sentencepiece, which is not installed") from error
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(f"it is not a SentencePiece model ({error})") from error
        if processor.bos_id() < 0:
            raise ValueError("it has no beginning-of-sequence token")

        def split(text: str) -> list[int]:
            return list(processor.EncodeAsIds(text))

        return cls(split, processor.bos_id(), processor.GetPieceSize())

    def encode(self, text: str, max_tokens: int = 1024) -> TokenizedPrompt:
        """Ids of a prompt; surrounding white space is dropped. An empty text is the beginning token alone.

        Args:
            max_tokens: a longer prompt keeps this many, counted from its start.
        """
        ids = self._split(text.strip())
        # A prompt may begin with the token itself, written out
        while ids and ids[0] == self.bos:
            del ids[0]
        ids.insert(0, self.bos)
        return TokenizedPrompt(ids[:max_tokens], truncated_from=len(ids) if len(ids) > max_tokens else None)


def _bos_token(folder: Path) -> str:
    """The beginning token that the tokenizer's own configuration names."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return BOS
    try:
        token = parse_json(path.read_bytes()).get("bos_token", BOS)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path.name} beside it is not a JSON object") from error
    content = token.get("content", BOS) if isinstance(token, dict) else token
    return content if isinstance(content, str) else BOS
