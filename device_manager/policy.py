"""Which mode a run gets: arithmetic on bytes, without a device.

Times that order the modes are of one H200 and the full-size DiT in bf16 (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .modes import Mode, needs_snapshot

TextPlacement = Literal["stay", "stream"]

# From here on both DiTs and the text encoder stay (112 GB planned) and other workflows keep 28 GB of the device.
EVERYTHING_STAYS_TOTAL_BYTES = 130 * 1024**3

# A plan leaves this much of the free VRAM alone: cuBLAS and cuDNN workspaces, lazily loaded kernels, fragmentation.
# They do not shrink with the card, so there is a floor.
MARGIN_SHARE = 0.01
MARGIN_FLOOR_BYTES = 512 * 1024**2

# A streamed text encoder holds its embeddings (2.0 GB) and a window of 3 of its 48 layers (1.35 GB): 1/7 of 23.5 GB.
TEXT_WINDOW = 7

# Merging brings the LoRA's matrices over through a ring of 3 of 48 layers.
LORA_WINDOW = 16

# Modes in which VAEs, vocoder and upsampler come over for each use only (3 GB, 55 ms in all at 55 GB/s)
SMALL_MODES = (Mode.SNAPSHOT_LOW, Mode.ORIGINAL)


@dataclass(frozen=True)
class Facts:
    """What a decision is made from; every number is bytes.

    Attributes:
        total_vram: what the device has, or what this process may take of it.
        free_vram: what we may use, including what we already hold.
        host_available: host memory that can be taken, the cgroup's limit included.
        pinned_budget: how much of it may be page-locked.
        dit_bytes: one set of DiT weights.
        lora_bytes: the matrices of the distilled LoRA and the user's.
        activation_bytes: the most that denoising or decoding needs beside weights, at the requested size.
        text_encoder_bytes: the text encoder's weights.
        text_work_bytes: what encoding needs beside them: connectors and all its states.
        other_bytes: VAEs, vocoder and upsampler; in ``SMALL_MODES`` they are on the GPU only while needed.
    """

    total_vram: int
    free_vram: int
    host_available: int
    pinned_budget: int
    dit_bytes: int
    lora_bytes: int
    activation_bytes: int
    text_encoder_bytes: int
    text_work_bytes: int
    other_bytes: int


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


def planned_peak(mode: Mode, text_encoder: TextPlacement, facts: Facts) -> int:
    """Bytes on the GPU at the worst moment: encoding, merging, computing a stage, or decoding."""
    if text_encoder == "stay":  # the connectors do too
        stays, encoding = facts.text_encoder_bytes + facts.text_work_bytes, 0
    else:
        # The connectors run after the encoder, so a streamed encoder's window is gone by then
        stays, encoding = 0, max(facts.text_work_bytes, -(-facts.text_encoder_bytes // TEXT_WINDOW))
    dit, lora, activation = facts.dit_bytes, facts.lora_bytes, facts.activation_bytes
    if mode is not Mode.ORIGINAL:
        lora = -(-lora // LORA_WINDOW)
    if mode in SMALL_MODES:
        # The LoRA's bytes are needed by stages, the other components before or after them
        return stays + dit + max(encoding, activation + max(lora, facts.other_bytes))
    while_encoding = (2 * dit if mode is Mode.RESIDENT else dit) + encoding
    return stays + facts.other_bytes + max(2 * dit + lora + activation, while_encoding)


def host_needed(mode: Mode, text_encoder: TextPlacement, facts: Facts) -> int:
    """Bytes of host memory that the mode keeps for itself; the LoRA, which visits the GPU, in every mode."""
    needed = facts.lora_bytes + (facts.text_encoder_bytes if text_encoder == "stream" else 0)
    if needs_snapshot(mode):
        needed += facts.dit_bytes
    return needed


def choose(facts: Facts, requested: Mode | None = None) -> Decision:
    """The mode for a run.

    A requested mode is kept, with a warning in the reason where it is not expected to fit. Otherwise the fastest that
    fits is taken:

    1. resident: switching stages is a rebind. The text encoder stays from ``EVERYTHING_STAYS_TOTAL_BYTES`` on,
       otherwise it streams.
    2. snapshot: a copy and a merge on the GPU, 67 ms, mostly hidden. A pageable host copy is as good, no run reads it.
    3. snapshot-low, where everything it keeps on the host can be pinned: a merge of 44 ms per run, against 59 ms per
       call of a dynamic LoRA (98 with peft's arithmetic; three calls in stage 2), and the same bits as resident. The
       restore, 0.69 s, hides behind decoding.
    4. original: no host copy of the DiT, and all of the LoRA's matrices on the GPU.
    5. snapshot-low with a pageable host copy: its restore takes 4.3 s at 8.8 GB/s, more than a dynamic LoRA costs.

    Raises:
        DoesNotFit: nothing was requested and no mode fits.
    """
    if requested is not None:
        return _keep(facts, requested)
    for mode, allowed in _PREFERENCE:
        for text_encoder in _text_placements(mode, facts):
            if _fits(mode, text_encoder, facts) and allowed(mode, text_encoder, facts):
                return _decision(mode, text_encoder, facts, _auto_reason(mode, text_encoder, facts))
    raise _does_not_fit(facts)


def next_lower(mode: Mode) -> Mode | None:
    """The mode to try once after running out of memory in this one; None when there is none."""
    return {
        Mode.RESIDENT: Mode.SNAPSHOT,
        Mode.SNAPSHOT: Mode.SNAPSHOT_LOW,
        Mode.SNAPSHOT_LOW: None,
        Mode.ORIGINAL: Mode.SNAPSHOT_LOW,
    }[mode]


def _always(mode: Mode, text_encoder: TextPlacement, facts: Facts) -> bool:
    return True


def _can_be_pinned(mode: Mode, text_encoder: TextPlacement, facts: Facts) -> bool:
    return host_needed(mode, text_encoder, facts) <= facts.pinned_budget


_PREFERENCE: tuple[tuple[Mode, Callable[[Mode, TextPlacement, Facts], bool]], ...] = (
    (Mode.RESIDENT, _always),
    (Mode.SNAPSHOT, _always),
    (Mode.SNAPSHOT_LOW, _can_be_pinned),
    (Mode.ORIGINAL, _always),
    (Mode.SNAPSHOT_LOW, _always),
)


def _text_placements(mode: Mode, facts: Facts) -> tuple[TextPlacement, ...]:
    """Where the text encoder may be, the better place first."""
    if mode is Mode.RESIDENT and facts.total_vram < EVERYTHING_STAYS_TOTAL_BYTES:
        return ("stream", "stay")  # it stays only where the host has no room to stream it from
    if mode is Mode.RESIDENT:
        return ("stay", "stream")
    if mode is Mode.ORIGINAL:
        return ("stream", "stay")
    return ("stream",)


def _fits(mode: Mode, text_encoder: TextPlacement, facts: Facts) -> bool:
    peak, host = planned_peak(mode, text_encoder, facts), host_needed(mode, text_encoder, facts)
    return peak + safety_margin(facts) <= facts.free_vram and host <= facts.host_available


def _keep(facts: Facts, mode: Mode) -> Decision:
    placements = _text_placements(mode, facts)
    least = min(placements, key=lambda placement: planned_peak(mode, placement, facts))
    text_encoder = next((placement for placement in placements if _fits(mode, placement, facts)), least)
    peak, host = planned_peak(mode, text_encoder, facts), host_needed(mode, text_encoder, facts)
    sentences = [
        f"{mode} was requested: it needs about {_gb(peak)} of the {_gb(facts.free_vram)} of free GPU memory, "
        f"{_text_words(text_encoder)}."
    ]
    if peak > facts.free_vram:
        sentences.append(
            f"Warning: that is {_gb(peak - facts.free_vram)} more than is free; expect it to run out of memory, "
            "or choose auto."
        )
    elif peak + safety_margin(facts) > facts.free_vram:
        sentences.append(
            f"Warning: that leaves {_gb(facts.free_vram - peak)} spare, "
            f"less than the safety margin of {_gb(safety_margin(facts))}."
        )
    if host > facts.host_available:
        sentences.append(
            f"Warning: it keeps {_gb(host)} in host memory, of which only {_gb(facts.host_available)} are available."
        )
    elif host > facts.pinned_budget:
        sentences.append(_pageable_words(mode, host, facts))
    return _decision(mode, text_encoder, facts, " ".join(sentences))


def _decision(mode: Mode, text_encoder: TextPlacement, facts: Facts, reason: str) -> Decision:
    return Decision(
        mode, reason, text_encoder, planned_peak(mode, text_encoder, facts), host_needed(mode, text_encoder, facts)
    )


_ADVANTAGE = {
    Mode.RESIDENT: "both sets of weights stay on the GPU",
    Mode.SNAPSHOT: "the second set of weights is made on the GPU for stage 2 and dropped after it",
    Mode.SNAPSHOT_LOW: "one set of weights, changed for stage 2 and restored from host memory after it",
    Mode.ORIGINAL: "one set of weights, with the LoRA computed beside it",
}


def _auto_reason(mode: Mode, text_encoder: TextPlacement, facts: Facts) -> str:
    peak, host = planned_peak(mode, text_encoder, facts), host_needed(mode, text_encoder, facts)
    sentences = [
        f"auto chose {mode}: {_ADVANTAGE[mode]}, {_text_words(text_encoder)}. It needs about {_gb(peak)} of the "
        f"{_gb(facts.free_vram)} of free GPU memory and {_gb(host)} of the {_gb(facts.host_available)} of available "
        "host memory."
    ]
    if mode is not Mode.RESIDENT:
        resident = planned_peak(Mode.RESIDENT, "stream", facts)
        if resident + safety_margin(facts) > facts.free_vram:
            sentences.append(f"resident would need {_gb(resident)} of GPU memory.")
    if host > facts.pinned_budget:
        sentences.append(_pageable_words(mode, host, facts))
    return " ".join(sentences)


def _pageable_words(mode: Mode, host: int, facts: Facts) -> str:
    slower = "going back to stage 1 takes seconds" if mode is Mode.SNAPSHOT_LOW else "copies from it are slower"
    return f"Only {_gb(facts.pinned_budget)} of the {_gb(host)} in host memory can be page-locked, so {slower}."


def _text_words(text_encoder: TextPlacement) -> str:
    return "the text encoder " + ("stays there too" if text_encoder == "stay" else "streams from host memory")


def _does_not_fit(facts: Facts) -> DoesNotFit:
    margin = safety_margin(facts)
    needed = {mode: planned_peak(mode, "stream", facts) + margin for mode in Mode}
    per_mode = "; ".join(
        f"{mode} {_gb(needed[mode])} GPU and {_gb(host_needed(mode, 'stream', facts))} host" for mode in Mode
    )
    least = min(needed.values())
    advice = []
    if least > facts.free_vram:
        weights = min(planned_peak(mode, "stream", replace(facts, activation_bytes=0)) for mode in Mode) + margin
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
