"""Prompts to text embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import lcm

from torch import Tensor

from ..finite import Suspect, check_finite
from ..models.text.connector import TEXT_TOKENS
from ..models.text.gemma import gemma_states
from ..plain_text import plain
from ..protocols import Models, Progress, Residency
from ..types import Component, PromptContext
from .causes import of_files, of_input

logger = logging.getLogger("ltx2.prompt")


def encode_prompts(
    models: Models, residency: Residency, prompts: Sequence[str], progress: Progress
) -> list[PromptContext]:
    """Embeddings of each prompt, in order; equal prompts are encoded once.

    A prompt longer than the limit is cut there, and a warning says so. Progress counts one step per distinct prompt for
    the text encoder, which takes all of them at once, and one for the connectors.
    """
    distinct = list(dict.fromkeys(prompts))
    tokenizer = models.tokenizer()
    notices: dict[str, str] = {}
    progress.start("text", 2 * len(distinct))
    encoded = [tokenizer.encode(prompt, max_tokens=TEXT_TOKENS) for prompt in distinct]
    for prompt, tokens in zip(distinct, encoded, strict=True):
        if tokens.truncated_from is not None:
            notices[prompt] = cut_notice(prompt, tokens.truncated_from)
            logger.warning("%s", notices[prompt])
    with residency.recorder.measure("text"):
        with residency.use(Component.TEXT_ENCODER) as encoder:
            states = gemma_states(encoder, [tokens.tensor(residency.device) for tokens in encoded])
            progress.step("text", len(states))
        contexts: dict[str, PromptContext] = {}
        with residency.use(Component.TEXT_CONNECTOR) as connector:
            for prompt, hidden in zip(distinct, states, strict=True):
                context: PromptContext = connector(hidden)
                contexts[prompt] = replace(context, notices=(notices[prompt],)) if prompt in notices else context
                progress.step("text", len(states) + len(contexts))
        _check(models, contexts.values(), states)
    progress.finish("text")
    return [contexts[prompt] for prompt in prompts]


def cut_notice(prompt: str, tokens: int) -> str:
    """What the user should know of a prompt that was cut."""
    return f"The prompt has {tokens} tokens and is cut to the first {TEXT_TOKENS}: {plain(prompt, 60)!r}"


def connect_text(
    models: Models, residency: Residency, video: Tensor, audio: Tensor, progress: Progress
) -> PromptContext:
    """Embeddings of a prompt that another program has encoded and projected, but not connected.

    Args:
        video, audio: (n, Dv) and (n, Da), projected features of the real tokens.
    """
    progress.start("text", 1)
    with residency.recorder.measure("text"), residency.use(Component.TEXT_CONNECTOR) as connector:
        # Longer prompts, which our own encoder cuts, are filled up to whole sets of registers
        registers = lcm(connector.config.video.registers, connector.config.audio.registers)
        context: PromptContext = connector.connect(
            video, audio, max(TEXT_TOKENS, -(-len(video) // registers) * registers)
        )
        given = Suspect("the given text embedding", of_input("CONDITIONING"), (video, audio))
        _check_contexts(models, [context], given)
        progress.step("text", 1)
    progress.finish("text")
    return context


def _check(models: Models, contexts: Iterable[PromptContext], states: Sequence[Tensor]) -> None:
    encoder = Suspect("what the text encoder makes of the prompt", of_files(models, "gemma"), tuple(states))
    _check_contexts(models, contexts, encoder)


def _check_contexts(models: Models, contexts: Iterable[PromptContext], before: Suspect) -> None:
    """Raises :class:`NotFiniteError` before anything is made of such embeddings."""
    cause = of_files(models, "text_projection", "checkpoint")
    tensors = tuple(tensor for context in contexts for tensor in (context.video, context.audio))
    check_finite("text encoding", Suspect("the prompt's embedding", cause, tensors), before)
