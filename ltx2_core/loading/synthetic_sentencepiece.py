"""A SentencePiece model made from a vocabulary, without training: sentencepiece_model.proto, written by hand."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable

# sentencepiece_model.proto: kinds of pieces, numbers of fields
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, KIND = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK = 3, 35
UNK, BOS, EOS, PAD = (40, 45), (41, 46), (42, 47), (43, 48)  # id and piece of each
NAME, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 1, 3, 4, 5
BPE = 2


def sentencepiece_model(vocabulary: Iterable[str], special: Collection[str], merges: int) -> bytes:
    """A byte-fallback BPE model with Gemma's settings: nothing is normalised, white space is kept.

    Args:
        vocabulary: the tokens in the order of their ids: special ones, bytes (``<0x41>``), single signs, merged ones.
        special: those that no text makes; ``<pad>``, ``<eos>``, ``<bos>`` and ``<unk>`` must be among them.
        merges: how many tokens at the end are merged ones, the first of them merged first.
    """
    tokens = list(vocabulary)
    pieces = b""
    for number, token in enumerate(tokens):
        rank = number - (len(tokens) - merges)
        kind = _kind(token, special)
        pieces += _bytes(PIECES, _bytes(PIECE, token.encode()) + _float(SCORE, float(-max(rank, 0))) + _int(KIND, kind))
    trainer = _int(MODEL_TYPE, BPE) + _int(BYTE_FALLBACK, 1)
    for (number, piece), token in {UNK: "<unk>", BOS: "<bos>", EOS: "<eos>", PAD: "<pad>"}.items():
        trainer += _int(number, tokens.index(token)) + _bytes(piece, token.encode())
    normalizer = _bytes(NAME, b"identity") + _int(ADD_DUMMY_PREFIX, 0) + _int(REMOVE_EXTRA_WHITESPACES, 0)
    normalizer += _int(ESCAPE_WHITESPACES, 1)
    return pieces + _bytes(TRAINER, trainer) + _bytes(NORMALIZER, normalizer)


def _kind(token: str, special: Collection[str]) -> int:
    if token in special:
        return UNKNOWN if token == "<unk>" else CONTROL
    return BYTE if token.startswith("<0x") else NORMAL


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
