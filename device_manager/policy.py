"""Which mode a run gets: arithmetic on bytes, without a device.

Times that order the modes are of one H200 and the full-size DiT in bf16 (benchmarks/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import modes
from .facts import Facts, Plan, TextPlacement
from .modes.mode import Mode

# A plan leaves this much of the free VRAM alone: cuBLAS and cuDNN workspaces, lazily loaded kernels, fragmentation.
# They do not shrink with the card, so there is a floor.
MARGIN_SHARE = 0.01
MARGIN_FLOOR_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Decision:
    """The chosen mode, why in words, and what it takes: bytes on the GPU at the worst moment, bytes on the host."""

    mode: Mode
    reason: str
    text_encoder: TextPlacement
    planned_peak_bytes: int
    host_bytes: int


class DoesNotFit(Exception):
    """No mode fits; the message has the numbers and what to change.

    Attributes:
        needed: planned peak in bytes of each mode, safety margin included.
        available: the free VRAM in bytes.
    """

    def __init__(self, message: str, needed: dict[Mode, int], available: int) -> None:
        super().__init__(message)
        self.needed, self.available = needed, available


def safety_margin(facts: Facts) -> int:
    """Bytes of the free VRAM that no plan uses."""
    return max(MARGIN_FLOOR_BYTES, int(MARGIN_SHARE * facts.free_vram))


def choose(facts: Facts, requested: Mode | None = None) -> Decision:
    """The mode for a run.

    A requested mode is kept, with a warning in the reason where it is not expected to fit. Otherwise the first of
    ``MODES`` is taken that fits and that prefers to be; where none does, the first that fits.

    Raises:
        DoesNotFit: nothing was requested and no mode fits.
    """
    if requested is not None:
        return _keep(facts, requested)
    plans = [(mode, plan) for mode in modes.MODES for plan in mode.plans(facts) if _fits(plan, facts)]
    chosen = [(mode, plan) for mode, plan in plans if mode.preferred(plan, facts)] or plans
    if not chosen:
        raise _does_not_fit(facts)
    mode, plan = chosen[0]
    return _decision(mode, plan, _auto_reason(mode, plan, facts))


def without_gpu(requested: Mode | None, origin: str) -> Decision:
    """The mode for a run on the CPU, where nothing is planned.

    Args:
        origin: who requested the mode, in words.
    """
    reason = origin if requested else "auto: without a GPU one copy of the weights serves both stages"
    return Decision(requested or modes.WITHOUT_GPU, reason, "stay", 0, 0)


def _fits(plan: Plan, facts: Facts) -> bool:
    return plan.device_bytes + safety_margin(facts) <= facts.free_vram and plan.host_bytes <= facts.host_available


def _keep(facts: Facts, mode: Mode) -> Decision:
    plans = mode.plans(facts)
    least = min(plans, key=lambda plan: plan.device_bytes)
    plan = next((plan for plan in plans if _fits(plan, facts)), least)
    sentences = [
        f"{mode} was requested: it needs about {_gb(plan.device_bytes)} of the {_gb(facts.free_vram)} of free GPU "
        f"memory, {_text_words(plan.text_encoder)}.",
        *_device_warning(plan.device_bytes, facts),
        *_host_warning(mode, plan.host_bytes, facts),
    ]
    return _decision(mode, plan, " ".join(sentences))


def _device_warning(peak: int, facts: Facts) -> list[str]:
    if peak > facts.free_vram:
        return [
            f"Warning: that is {_gb(peak - facts.free_vram)} more than is free; expect it to run out of memory, "
            "or choose auto."
        ]
    if peak + safety_margin(facts) > facts.free_vram:
        return [
            f"Warning: that leaves {_gb(facts.free_vram - peak)} spare, "
            f"less than the safety margin of {_gb(safety_margin(facts))}."
        ]
    return []


def _host_warning(mode: Mode, host: int, facts: Facts) -> list[str]:
    if host > facts.host_available:
        return [
            f"Warning: it keeps {_gb(host)} in host memory, of which only {_gb(facts.host_available)} are available."
        ]
    return _pageable_words(mode, host, facts)


def _decision(mode: Mode, plan: Plan, reason: str) -> Decision:
    return Decision(mode, reason, plan.text_encoder, plan.device_bytes, plan.host_bytes)


def _auto_reason(mode: Mode, plan: Plan, facts: Facts) -> str:
    sentences = [
        f"auto chose {mode}: {mode.words}, {_text_words(plan.text_encoder)}. It needs about {_gb(plan.device_bytes)} "
        f"of the {_gb(facts.free_vram)} of free GPU memory and {_gb(plan.host_bytes)} of the "
        f"{_gb(facts.host_available)} of available host memory.",
        *_fastest_words(mode, facts),
        *_pageable_words(mode, plan.host_bytes, facts),
    ]
    return " ".join(sentences)


def _fastest_words(mode: Mode, facts: Facts) -> list[str]:
    """Why it is not the fastest mode."""
    fastest = modes.MODES[0]
    needed = fastest.plan(facts, "stream").device_bytes
    fits = needed + safety_margin(facts) <= facts.free_vram
    return [] if mode is fastest or fits else [f"{fastest} would need {_gb(needed)} of GPU memory."]


def _pageable_words(mode: Mode, host: int, facts: Facts) -> list[str]:
    if host <= facts.pinned_budget:
        return []
    locked = f"Only {_gb(facts.pinned_budget)} of the {_gb(host)} in host memory can be page-locked"
    return [f"{locked}, so {mode.pageable}."]


def _text_words(text_encoder: TextPlacement) -> str:
    return "the text encoder " + ("stays there too" if text_encoder == "stay" else "streams from host memory")


def _does_not_fit(facts: Facts) -> DoesNotFit:
    margin = safety_margin(facts)
    plans = {mode: mode.plan(facts, "stream") for mode in modes.MODES}
    needed = {mode: plan.device_bytes + margin for mode, plan in plans.items()}
    per_mode = "; ".join(
        f"{mode} {_gb(needed[mode])} GPU and {_gb(plan.host_bytes)} host" for mode, plan in plans.items()
    )
    least = min(needed.values())
    advice = []
    if least > facts.free_vram:
        idle = replace(facts, activation_bytes=0)
        weights = min(mode.plan(idle, "stream").device_bytes for mode in modes.MODES) + margin
        if weights <= facts.free_vram:
            advice.append(f"a smaller width, height or frame count (this one takes {_gb(facts.activation_bytes)})")
        else:
            advice.append(f"not a smaller size, as the weights alone need {_gb(weights)}, but a smaller model")
        if least <= facts.total_vram:
            advice.append(f"closing other programs that use the GPU (it has {_gb(facts.total_vram)} in all)")
        else:
            advice.append(f"a GPU with at least {_gb(least)} free (this one has {_gb(facts.total_vram)} in all)")
    else:
        advice.append("closing other programs that use host memory, or giving the container more of it")
    advice.append("forcing a mode with --device-mode or the node's device mode, which skips this check")
    return DoesNotFit(
        f"No device mode fits. Available: {_gb(facts.free_vram)} of GPU memory, {_gb(facts.host_available)} of host "
        f"memory. Needed, with a margin of {_gb(margin)}: {per_mode}. What helps: {'; '.join(advice)}.",
        needed,
        facts.free_vram,
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
