"""The choice of a mode, with the full-size LTX-2.3 figures of MEASUREMENTS.md. GB are 10**9 bytes throughout."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ltx2_two_stage.device_manager.modes import Mode
from ltx2_two_stage.device_manager.policy import (
    DoesNotFit,
    Facts,
    choose,
    host_needed,
    next_lower,
    planned_peak,
    safety_margin,
)

GB = 10**9


def gb(count: float) -> int:
    return round(count * GB)


def facts(vram: float, free: float | None = None, host: float = 200, pinned: float | None = None) -> Facts:
    return Facts(
        total_vram=gb(vram),
        free_vram=gb(vram if free is None else free),
        host_available=gb(host),
        pinned_budget=gb(0.8 * host if pinned is None else pinned),
        dit_bytes=gb(37.98),
        lora_bytes=gb(7.61),
        activation_bytes=gb(1.5),
        text_encoder_bytes=gb(23.5),
        text_work_bytes=gb(6.3),
        other_bytes=gb(3),
    )


@pytest.mark.parametrize(
    ("given", "mode", "text_encoder", "most"),
    [
        pytest.param(facts(141), Mode.RESIDENT, "stay", 115, id="141-everything-stays"),
        pytest.param(facts(141, free=100), Mode.RESIDENT, "stream", 92, id="141-with-a-neighbour"),
        pytest.param(facts(141, free=60), Mode.SNAPSHOT_LOW, "stream", 48, id="141-with-a-large-neighbour"),
        pytest.param(facts(139), Mode.RESIDENT, "stream", 92, id="139-is-less-than-130-GiB"),
        pytest.param(facts(139, host=20), Mode.RESIDENT, "stay", 115, id="139-no-host-to-stream-from"),
        pytest.param(facts(95), Mode.RESIDENT, "stream", 92, id="95"),
        pytest.param(facts(85.9), Mode.SNAPSHOT_LOW, "stream", 48, id="80-GiB"),
        pytest.param(facts(80), Mode.SNAPSHOT_LOW, "stream", 48, id="80"),
        pytest.param(facts(80, host=60), Mode.ORIGINAL, "stay", 80, id="80-small-host"),
        pytest.param(facts(80, host=100, pinned=30), Mode.ORIGINAL, "stay", 80, id="80-little-to-pin"),
        pytest.param(facts(60), Mode.SNAPSHOT_LOW, "stream", 48, id="60"),
        pytest.param(facts(60, host=60), Mode.ORIGINAL, "stream", 55, id="60-small-host"),
        pytest.param(facts(51.5), Mode.SNAPSHOT_LOW, "stream", 48, id="48-GiB"),
        pytest.param(facts(48), Mode.SNAPSHOT_LOW, "stream", 48, id="48"),
        pytest.param(facts(48, host=80, pinned=30), Mode.SNAPSHOT_LOW, "stream", 48, id="48-pageable-is-the-last"),
    ],
)
def test_auto(given: Facts, mode: Mode, text_encoder: str, most: float) -> None:
    decision = choose(given)
    assert (decision.mode, decision.text_encoder) == (mode, text_encoder)
    assert decision.planned_peak_bytes <= gb(most)
    assert decision.planned_peak_bytes + safety_margin(given) <= given.free_vram
    assert decision.host_bytes <= given.host_available
    assert f"{decision.planned_peak_bytes / GB:.1f} GB" in decision.reason and str(mode) in decision.reason


def test_the_aggressive_snapshot_is_for_long_prompts_on_cards_that_hold_one_dit_while_encoding() -> None:
    given = replace(facts(95), text_work_bytes=gb(20))
    assert planned_peak(Mode.RESIDENT, "stream", given) > given.free_vram
    assert choose(given).mode is Mode.SNAPSHOT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param(facts(40), ("40.0 GB of GPU", "snapshot-low 47.8 GB", "a GPU with at least 47.8 GB"), id="40"),
        pytest.param(facts(24), ("24.0 GB of GPU", "not a smaller size"), id="24"),
        pytest.param(facts(48, host=60), ("60.0 GB of host", "69.1 GB host", "host memory, or"), id="48-small-host"),
        pytest.param(facts(141, free=40), ("closing other programs that use the GPU", "141.0 GB"), id="141-taken"),
        pytest.param(
            replace(facts(60), activation_bytes=gb(30)), ("a smaller width", "30.0 GB"), id="60-too-large-a-video"
        ),
    ],
)
def test_nothing_fits(given: Facts, said: tuple[str, ...]) -> None:
    with pytest.raises(DoesNotFit) as caught:
        choose(given)
    for words in (*said, "--device-mode", *(str(mode) for mode in Mode)):
        assert words in str(caught.value)
    assert caught.value.available == given.free_vram
    assert set(caught.value.needed) == set(Mode)


@pytest.mark.parametrize(
    ("mode", "text_encoder", "peak", "host"),
    [
        # other, both sets, LoRA, activations; encoding needs 2.81 less
        pytest.param(Mode.RESIDENT, "stay", 3 + 75.96 + 7.61 + 1.5 + 23.5, 7.61, id="resident-stay"),
        pytest.param(Mode.RESIDENT, "stream", 3 + 75.96 + 7.61 + 1.5, 31.11, id="resident-stream"),
        pytest.param(Mode.SNAPSHOT, "stream", 3 + 75.96 + 7.61 + 1.5, 69.09, id="snapshot-stream"),
        # encoding with the connectors is the worst moment; half a LoRA and the activations need 0.995 less
        pytest.param(Mode.SNAPSHOT_LOW, "stream", 3 + 37.98 + 6.3, 69.09, id="low-stream"),
        pytest.param(Mode.ORIGINAL, "stay", 3 + 37.98 + 7.61 + 6.3 + 23.5, 0, id="original-stay"),
        pytest.param(Mode.ORIGINAL, "stream", 3 + 37.98 + 7.61 + 6.3, 23.5, id="original-stream"),
    ],
)
def test_planned_bytes(mode: Mode, text_encoder: str, peak: float, host: float) -> None:
    given = facts(141)
    placement = "stay" if text_encoder == "stay" else "stream"
    assert planned_peak(mode, placement, given) == gb(peak)
    assert host_needed(mode, placement, given) == gb(host)


@pytest.mark.parametrize(
    ("changes", "peak"),
    [
        pytest.param({"text_work_bytes": 0}, 3 + 37.98 + 1.5 + 7.61 / 2, id="merging"),
        pytest.param({"activation_bytes": gb(12)}, 3 + 37.98 + 12 + 7.61 / 2, id="denoising-a-large-video"),
        pytest.param(
            {"text_work_bytes": 0, "text_encoder_bytes": gb(160)}, 3 + 37.98 + 10, id="window-of-a-large-encoder"
        ),
    ],
)
def test_the_worst_moment_of_low_vram(changes: dict[str, int], peak: float) -> None:
    assert planned_peak(Mode.SNAPSHOT_LOW, "stream", replace(facts(48), **changes)) == gb(peak)


def test_peaks_descend_with_the_modes() -> None:
    given = facts(141)
    peaks = [planned_peak(mode, "stream", given) for mode in (Mode.RESIDENT, Mode.SNAPSHOT, Mode.SNAPSHOT_LOW)]
    assert peaks == sorted(peaks, reverse=True)
    assert planned_peak(Mode.ORIGINAL, "stream", given) > peaks[-1]


@pytest.mark.parametrize("mode", list(Mode), ids=str)
def test_a_requested_mode_is_kept_without_a_warning_where_it_fits(mode: Mode) -> None:
    decision = choose(facts(141), mode)
    assert decision.mode is mode
    assert "was requested" in decision.reason and "Warning" not in decision.reason


@pytest.mark.parametrize(
    ("given", "mode", "warning"),
    [
        pytest.param(facts(48), Mode.RESIDENT, "40.1 GB more than is free", id="vram"),
        pytest.param(facts(88.3), Mode.SNAPSHOT, "less than the safety margin", id="margin"),
        pytest.param(facts(60, host=32), Mode.SNAPSHOT_LOW, "only 32.0 GB are available", id="host"),
        pytest.param(facts(60, pinned=10), Mode.SNAPSHOT_LOW, "10.0 GB of the 69.1 GB", id="pinned"),
        pytest.param(replace(facts(141), quantised=True), Mode.SNAPSHOT, "quantised", id="quantised"),
    ],
)
def test_a_requested_mode_is_kept_with_a_warning_where_it_does_not(given: Facts, mode: Mode, warning: str) -> None:
    decision = choose(given, mode)
    assert decision.mode is mode
    assert warning in decision.reason


def test_a_requested_mode_that_fits_nowhere_streams_the_text_encoder() -> None:
    assert choose(facts(48), Mode.ORIGINAL).text_encoder == "stream"
    assert choose(facts(141, free=80), Mode.RESIDENT).text_encoder == "stream"


@pytest.mark.parametrize(
    ("vram", "mode"),
    [
        pytest.param(95, Mode.RESIDENT, id="resident"),
        pytest.param(60, Mode.ORIGINAL, id="original"),
    ],
)
def test_quantised_models_are_not_merged_in_place(vram: float, mode: Mode) -> None:
    assert choose(replace(facts(vram), quantised=True)).mode is mode


def test_quantised_models_do_not_offer_snapshots_when_nothing_fits() -> None:
    with pytest.raises(DoesNotFit) as caught:
        choose(replace(facts(48), quantised=True))
    assert set(caught.value.needed) == {Mode.RESIDENT, Mode.ORIGINAL}


@pytest.mark.parametrize("mode", list(Mode), ids=str)
def test_every_mode_leads_down_to_low_vram(mode: Mode) -> None:
    chain = [mode]
    while (lower := next_lower(chain[-1])) is not None:
        chain.append(lower)
    assert chain[-1] is Mode.SNAPSHOT_LOW and len(set(chain)) == len(chain)
    assert next_lower(Mode.RESIDENT) is Mode.SNAPSHOT
