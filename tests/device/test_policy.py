"""The choice of a mode, with figures of the full-size LTX-2.3. GB are 10**9 bytes throughout."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ltx2_two_stage.device_manager.facts import Facts
from ltx2_two_stage.device_manager.modes import MODES, ORIGINAL, RESIDENT, SNAPSHOT, SNAPSHOT_LOW
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.policy import (
    DoesNotFit,
    choose,
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
        pytest.param(facts(141), RESIDENT, "stay", 115, id="141-everything-stays"),
        pytest.param(facts(141, free=100), RESIDENT, "stream", 92, id="141-with-a-neighbour"),
        pytest.param(facts(141, free=60), SNAPSHOT_LOW, "stream", 44.3, id="141-with-a-large-neighbour"),
        pytest.param(facts(139), RESIDENT, "stream", 92, id="139-is-less-than-130-GiB"),
        pytest.param(facts(139, host=20), RESIDENT, "stay", 115, id="139-no-host-to-stream-from"),
        pytest.param(facts(95), RESIDENT, "stream", 92, id="95"),
        pytest.param(facts(85.9), SNAPSHOT, "stream", 81, id="80-GiB"),
        pytest.param(facts(80), SNAPSHOT_LOW, "stream", 44.3, id="80"),
        pytest.param(facts(80, host=60), ORIGINAL, "stream", 47.1, id="80-small-host"),
        pytest.param(facts(80, host=100, pinned=30), ORIGINAL, "stream", 47.1, id="80-little-to-pin"),
        pytest.param(facts(60), SNAPSHOT_LOW, "stream", 44.3, id="60"),
        pytest.param(facts(60, host=60), ORIGINAL, "stream", 47.1, id="60-small-host"),
        pytest.param(facts(46), SNAPSHOT_LOW, "stream", 44.3, id="46"),
        pytest.param(facts(51.5), SNAPSHOT_LOW, "stream", 44.3, id="48-GiB"),
        pytest.param(facts(48), SNAPSHOT_LOW, "stream", 44.3, id="48"),
        pytest.param(facts(48, host=60), ORIGINAL, "stream", 47.1, id="48-small-host"),
        pytest.param(facts(48, host=80, pinned=30), ORIGINAL, "stream", 47.1, id="48-little-to-pin"),
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
    assert RESIDENT.plan(given, "stream").device_bytes > given.free_vram
    assert choose(given).mode is SNAPSHOT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param(
            facts(40), ("40.0 GB of GPU", "snapshot-low 44.8 GB", "original 47.6 GB", "at least 44.8 GB"), id="40"
        ),
        pytest.param(facts(24), ("24.0 GB of GPU", "not a smaller size", "the weights alone need 44.8 GB"), id="24"),
        pytest.param(facts(48, host=31), ("31.0 GB of host", "31.1 GB host", "host memory, or"), id="48-tiny-host"),
        pytest.param(facts(141, host=7), ("7.0 GB of host", "host memory, or"), id="141-no-host-for-the-lora"),
        pytest.param(facts(141, free=40), ("closing other programs that use the GPU", "141.0 GB"), id="141-taken"),
        pytest.param(
            replace(facts(60), activation_bytes=gb(30)), ("a smaller width", "30.0 GB"), id="60-too-large-a-video"
        ),
    ],
)
def test_nothing_fits(given: Facts, said: tuple[str, ...]) -> None:
    with pytest.raises(DoesNotFit) as caught:
        choose(given)
    for words in (*said, "--device-mode", *(str(mode) for mode in MODES)):
        assert words in str(caught.value)
    assert caught.value.available == given.free_vram
    assert set(caught.value.needed) == set(MODES)


@pytest.mark.parametrize(
    ("mode", "text_encoder", "peak", "host"),
    [
        # other, both sets, connectors and encoder, then a stage with its LoRA window
        pytest.param(RESIDENT, "stay", 3 + 75.96 + 6.3 + 23.5 + 7.61 / 16 + 1.5, 7.61, id="resident-stay"),
        # other, both sets, then encoding; a stage with its LoRA window needs 4.32 less
        pytest.param(RESIDENT, "stream", 3 + 75.96 + 6.3, 31.11, id="resident-stream"),
        # other, both sets, LoRA window, activations
        pytest.param(SNAPSHOT, "stream", 3 + 75.96 + 7.61 / 16 + 1.5, 69.09, id="snapshot-stream"),
        # one set, then encoding
        pytest.param(SNAPSHOT_LOW, "stream", 37.98 + 6.3, 69.09, id="low-stream"),
        # one set, LoRA, activations
        pytest.param(ORIGINAL, "stay", 37.98 + 7.61 + 1.5 + 6.3 + 23.5, 7.61, id="original-stay"),
        pytest.param(ORIGINAL, "stream", 37.98 + 7.61 + 1.5, 31.11, id="original-stream"),
    ],
)
def test_planned_bytes(mode: Mode, text_encoder: str, peak: float, host: float) -> None:
    given = facts(141)
    placement = "stay" if text_encoder == "stay" else "stream"
    plan = mode.plan(given, placement)
    assert plan.device_bytes == gb(peak)
    assert plan.host_bytes == gb(host)


LOW = SNAPSHOT_LOW


@pytest.mark.parametrize(
    ("mode", "changes", "peak"),
    [
        pytest.param(ORIGINAL, {"text_work_bytes": 0}, 37.98 + 1.5 + 7.61, id="original-refining"),
        pytest.param(ORIGINAL, {"activation_bytes": gb(12)}, 37.98 + 12 + 7.61, id="original-refining-a-large-video"),
        pytest.param(LOW, {"text_work_bytes": 0}, 37.98 + 1.5 + 3, id="low-decoding"),
        pytest.param(
            LOW, {"text_work_bytes": 0, "lora_bytes": gb(160)}, 37.98 + 1.5 + 10, id="low-merging-a-huge-lora"
        ),
        pytest.param(LOW, {"activation_bytes": gb(12)}, 37.98 + 12 + 3, id="low-decoding-a-large-video"),
        *(
            pytest.param(mode, changes, peak, id=f"{mode}-{name}")
            for mode in (LOW, ORIGINAL)
            for name, changes, peak in (
                ("decoding-after-a-small-lora", {"text_work_bytes": 0, "lora_bytes": gb(1)}, 37.98 + 1.5 + 3),
                ("connectors-of-a-long-prompt", {"text_work_bytes": gb(12)}, 37.98 + 12),
                ("large-encoder", {"text_work_bytes": 0, "text_encoder_bytes": gb(140)}, 37.98 + 20),
                ("window-gone", {"text_work_bytes": gb(21), "text_encoder_bytes": gb(140)}, 37.98 + 21),
            )
        ),
    ],
)
def test_the_worst_moment_of_one_set(mode: Mode, changes: dict[str, int], peak: float) -> None:
    assert mode.plan(replace(facts(48), **changes), "stream").device_bytes == gb(peak)


def test_a_part_of_a_byte_of_the_window_is_a_byte() -> None:
    given = replace(facts(48), dit_bytes=0, lora_bytes=0, activation_bytes=0, text_work_bytes=0, other_bytes=0)
    assert SNAPSHOT_LOW.plan(replace(given, text_encoder_bytes=7), "stream").device_bytes == 1
    assert SNAPSHOT_LOW.plan(replace(given, text_encoder_bytes=8), "stream").device_bytes == 2


def test_peaks_descend_with_the_modes() -> None:
    given = facts(141)
    resident, snapshot, low, original = (mode.plan(given, "stream").device_bytes for mode in MODES)
    assert resident >= snapshot > original > low
    assert SNAPSHOT_LOW.plan(given, "stream").host_bytes > ORIGINAL.plan(given, "stream").host_bytes


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_requested_mode_is_kept_without_a_warning_where_it_fits(mode: Mode) -> None:
    decision = choose(facts(141), mode)
    assert decision.mode is mode
    assert "was requested" in decision.reason and "Warning" not in decision.reason


@pytest.mark.parametrize(
    ("given", "mode", "warning"),
    [
        pytest.param(facts(48), RESIDENT, "37.3 GB more than is free", id="vram"),
        pytest.param(facts(81.2), SNAPSHOT, "less than the safety margin", id="margin"),
        pytest.param(facts(60, host=32), SNAPSHOT_LOW, "only 32.0 GB are available", id="host"),
        pytest.param(facts(60, pinned=10), SNAPSHOT_LOW, "10.0 GB of the 69.1 GB", id="pinned"),
    ],
)
def test_a_requested_mode_is_kept_with_a_warning_where_it_does_not(given: Facts, mode: Mode, warning: str) -> None:
    decision = choose(given, mode)
    assert decision.mode is mode
    assert warning in decision.reason


def test_a_requested_mode_that_fits_nowhere_streams_the_text_encoder() -> None:
    assert choose(facts(40), ORIGINAL).text_encoder == "stream"
    assert choose(facts(141, free=80), RESIDENT).text_encoder == "stream"


@pytest.mark.parametrize("vram", [48, 51.5, 60, 80])
@pytest.mark.parametrize("host", [32, 60, 69.1, 80, 200])
def test_auto_takes_low_vram_only_where_all_of_its_host_copy_can_be_pinned(vram: float, host: float) -> None:
    for pinned in (0, 30, 69, 69.1, 200):
        expected = SNAPSHOT_LOW if min(host, pinned) > 69.09 else ORIGINAL
        assert choose(facts(vram, host=host, pinned=pinned)).mode is expected


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode_leads_down_to_low_vram(mode: Mode) -> None:
    chain = [mode]
    while (lower := chain[-1].falls_back_to) is not None:
        chain.append(lower)
    assert chain[-1] is SNAPSHOT_LOW and len(set(chain)) == len(chain)
    assert RESIDENT.falls_back_to is SNAPSHOT
