"""The benchmarks of whole runs and of what surrounds the DiT, on tiny models."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from ltx2_two_stage.benchmarks import command
from ltx2_two_stage.benchmarks.decode import PARTS, DecodeBenchmark, counted
from ltx2_two_stage.benchmarks.e2e import E2EBenchmark, differences, psnr, summary
from ltx2_two_stage.benchmarks.synthetic_models import SyntheticModels
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.types import VideoSize

CPU = torch.device("cpu")
SMALL = VideoSize(9, 64, 128)


def test_every_part_around_the_transformer() -> None:
    assert command.PARTS == PARTS
    saved: list[int] = []
    benchmark = DecodeBenchmark(SyntheticModels("2.3", tiny=True), (SMALL,), repeat=1)
    figures = benchmark.run(lambda figures: saved.append(len(figures["rows"])), CPU)
    assert [row["part"] for row in figures["rows"] if row["whole"]] == ["text", "upsampler", "video", "sound"]
    assert saved == [*range(1, 9), 8]
    assert all(row["ms"]["repeats"] == 1 for row in figures["rows"])
    assert max(row["tflop"] for row in figures["rows"]) > 0


def test_operations_are_counted() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert counted(lambda: a @ b) == 2 * 3 * 5 * 7


def test_whole_runs_and_what_differs_between_them() -> None:
    models = partial(SyntheticModels, "2.3", 0, tiny=True)
    benchmark = E2EBenchmark(lambda _: models(), "two-stage", (SMALL,), "original", ("bf16", "bf16"), repeat=2, steps=2)
    benchmark.check()
    figures = benchmark.run(lambda _: None, CPU)
    first, second = figures["rows"]
    assert first["warm"]["total_s"]["runs"] == 2 and first["all_finite"]
    # Every run has a prompt of its own, so that all of them encode text
    assert list(first["warm"]["stages"]) == ["text", "stage_1", "upsample", "stage_2", "decode"]
    assert second["against"] == "bf16"
    assert set(second["differences"].values()) == {0.0, None}  # the same weights, bit for bit


def test_sizes_are_checked_before_anything_is_made() -> None:
    def unexpected(precision: str) -> SyntheticModels:
        return SyntheticModels("2.3", precision=precision)

    benchmark = E2EBenchmark(unexpected, "two-stage", (SMALL, VideoSize(9, 64, 100)))
    with pytest.raises(SettingError, match="width = 100"):
        benchmark.check()


def test_differences() -> None:
    frames = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    other = frames.clone()
    other[0, 0, 0, 0] = 255
    # One of 96 values off by the whole range: 10 * log10(96)
    assert psnr(frames, other) == pytest.approx(19.82, abs=0.01)
    assert psnr(frames, frames) is None
    video = torch.ones(4)
    found = differences({"stage1_video": video, "frames": frames}, {"stage1_video": video * 1.01, "frames": other})
    assert found["stage1_video"] == pytest.approx(0.01, rel=1e-3)


def test_runs_are_summed_up() -> None:
    runs = [
        {"total_s": total, "stages": [{"name": "text", "ms": ms, "peak_bytes": peak}]}
        for total, ms, peak in ((2.0, 10.0, 5), (1.0, 30.0, 9), (3.0, 20.0, 7))
    ]
    assert summary(runs) == {
        "total_s": {"min": 1.0, "median": 2.0, "max": 3.0, "runs": 3},
        "stages": {"text": {"ms": 20.0, "peak_bytes": 9}},
        "peak_bytes": 9,
    }
    assert summary([]) == {}
