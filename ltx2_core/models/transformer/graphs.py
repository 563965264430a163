"""Equal calls of the DiT as CUDA graphs: the GPU takes its thousands of launches from a list, not from Python."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.availability import fused
from ...kernels.lanes import stream_for
from ...protocols import Velocities
from ...types import BatchItem, CrossTimestepRule, Rope, StreamInput, VelocityPair
from .model import LTXTransformer

logger = logging.getLogger("ltx2.kernels")

# Tokens times batch items up to which calls are captured. One H200: one pass of 1,536 tokens takes 85 ms as a graph and
# 100 ms as it is, the time that Python takes to launch it; in fp8 60 and 125. With 6,144 rows a graph is 2% ahead, and
# Python takes 190 of 258 ms, in fp8 150 of 176, which a slower CPU may not have; it keeps its activations, 0.7 GB
MOST_ROWS = 8_192
# Calls of a kind from which one is captured. Capturing takes Python three quarters of a call's time, and the GPU may
# have to wait; a replay gives back what Python takes longer than the GPU: at 1,536 tokens 15 to 70 ms, few at 6,144
LEAST_CALLS = 6


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: VelocityPair


class GraphedCalls:
    """A DiT whose calls of one stage are replayed: the first of a kind runs as it is, the second is captured.

    Weights, texts and rotary tables stay where they are as long as a stage lasts; an instance must not outlive it. What
    waits for weights before a block (forward pre-hooks) is called before every replay, for all blocks.

    Args:
        transformer: the DiT.
        calls: about how many calls of a kind there will be.
    """

    def __init__(self, transformer: LTXTransformer, calls: int = LEAST_CALLS) -> None:
        self.transformer: Velocities = transformer
        self._blocks = transformer.transformer_blocks
        self._enough = calls >= LEAST_CALLS
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, _Captured] = {}
        self._pool: Any = None
        self._refused = False

    def __call__(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        items: Sequence[BatchItem],
        cross_rule: CrossTimestepRule,
    ) -> VelocityPair:
        """As the DiT's own forward. The result of a replay is overwritten by the next one."""
        streams = [stream for stream in (video, audio) if stream is not None]
        if not self._pays(streams, items):
            return self.transformer(video, audio, items, cross_rule)
        key = (tuple(items), cross_rule, *(None if s is None else _signature(s) for s in (video, audio)))
        if key not in self._seen:
            self._seen.add(key)
            return self.transformer(video, audio, items, cross_rule)
        _call_pre_hooks(self._blocks)
        given = [tensor for stream in streams for tensor in (stream.latent, stream.timesteps, stream.sigma)]
        captured = self._captured.get(key) or self._captured_now(key, video, audio, items, cross_rule)
        if captured is None:
            return self.transformer(video, audio, items, cross_rule)
        for held, tensor in zip(captured.inputs, given, strict=True):
            held.copy_(tensor)
        captured.graph.replay()
        return captured.outputs

    def _captured_now(
        self,
        key: Hashable,
        video: StreamInput | None,
        audio: StreamInput | None,
        items: Sequence[BatchItem],
        cross_rule: CrossTimestepRule,
    ) -> _Captured | None:
        """A new graph, or None where this call cannot be captured: then it runs as it is from now on."""
        if self._refused:
            return None
        try:
            self._captured[key] = self._capture(video, audio, items, cross_rule)
        except Exception as error:  # out of memory, or an operation that a graph cannot hold
            logger.warning("the DiT runs without CUDA graphs: %s", error)
            self._refused = True
            _finish_a_capture()
            return None
        return self._captured[key]

    def _pays(self, streams: Sequence[StreamInput], items: Sequence[BatchItem]) -> bool:
        latent = max((stream.latent for stream in streams), key=lambda tokens: tokens.shape[1])
        rows = latent.shape[1] * max(latent.shape[0], len(items))
        worth_it = self._enough and rows <= MOST_ROWS
        return worth_it and latent.is_cuda and torch.version.hip is None and fused(latent) and _holds_memory()

    def _capture(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        items: Sequence[BatchItem],
        cross_rule: CrossTimestepRule,
    ) -> _Captured:
        held_video, held_audio = video and _with_own_inputs(video), audio and _with_own_inputs(audio)
        inputs = [t for s in (held_video, held_audio) if s is not None for t in (s.latent, s.timesteps, s.sigma)]
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        capturing = stream_for("capture", current.device)
        capturing.wait_stream(current)
        # torch.cuda.graph would wait for the device and empty the allocator's cache
        with torch.cuda.stream(capturing):
            # Other threads of a host application may go on using the GPU
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = self.transformer(held_video, held_audio, items, cross_rule)
            finally:
                graph.capture_end()
        current.wait_stream(capturing)
        return _Captured(graph, tuple(inputs), outputs)


def _holds_memory() -> bool:
    """Whether PyTorch's allocator is its own. Another one, such as cudaMallocAsync, which ComfyUI takes unless it is
    started with ``--disable-cuda-malloc``, has no memory for a graph before it runs: Triton refuses such addresses, and
    giving them up ends the process."""
    return torch.cuda.get_allocator_backend() == "native"


def _finish_a_capture() -> None:
    """A capture that fails leaves PyTorch's random generator waiting for its end; one that succeeds frees it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        number = torch.zeros(1, device=stream.device)
        graph.capture_begin(capture_error_mode="thread_local")
        number.zero_()
        graph.capture_end()


def _with_own_inputs(stream: StreamInput) -> StreamInput:
    return replace(stream, latent=stream.latent.clone(), timesteps=stream.timesteps.clone(), sigma=stream.sigma.clone())


def _signature(stream: StreamInput) -> Hashable:
    """Everything that a graph has built in: sizes, and where the tensors are that it reads in place."""
    fixed = [stream.context, *_tables(stream.rope.self_attention), *_tables(stream.rope.cross_attention)]
    if stream.token_levels is not None:
        fixed.append(stream.token_levels)
    sizes = tuple(tuple(tensor.shape) for tensor in (stream.latent, stream.timesteps, stream.sigma))
    return (stream.enabled, stream.latent.dtype, sizes, tuple((t.data_ptr(), tuple(t.shape)) for t in fixed))


def _tables(rope: Rope) -> tuple[Tensor, Tensor]:
    return rope.cos, rope.sin


def _call_pre_hooks(blocks: nn.Module) -> None:
    for block in blocks.children():
        for hook in block._forward_pre_hooks.values():
            hook(block, ())
