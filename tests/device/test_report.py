"""The text table and the chart of a run."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from ltx2_two_stage.device_manager.report import places_table, stage_chart, stage_table

SVG = "{http://www.w3.org/2000/svg}"


def record(name: str, ms: float, peak: float, h2d: float = 0, d2h: float = 0) -> dict[str, Any]:
    return {
        "name": name,
        "ms": ms,
        "peak_bytes": round(peak * 1e9),
        "h2d_bytes": round(h2d * 1e9),
        "d2h_bytes": round(d2h * 1e9),
    }


RUN = [
    record("prompt", 1600, 86.7, 23.5),
    record("stage 1", 8600, 84.1),
    record("stage 2", 880, 88.07, 0, 0.25),
    record("decode <a> & sound", 20, 80.1),
]


def test_table_is_aligned_and_totals() -> None:
    lines = stage_table(RUN, "resident", "both fit").splitlines()
    assert lines[0].split("  ")[0] == "stage"
    assert [line.split()[-4:] for line in (lines[2], lines[4], lines[-3])] == [
        ["1.600", "86.70", "23.50", "0.00"],
        ["0.880", "88.07", "0.00", "0.25"],
        ["11.100", "88.07", "23.50", "0.25"],
    ]
    assert lines[-3].startswith("total")
    assert len({len(line) for line in lines[:-2]}) == 1
    assert lines[-1] == "mode: resident (both fit)"


def test_table_without_stages() -> None:
    assert "total" in stage_table([], "original", "")


def test_places_are_aligned_and_totalled() -> None:
    status = {
        "device": {"base": 38_100_000_000, "merged": 38_100_000_000, "video_decoder": 1_500_000_000},
        "host": {"adapters": 2_500_000_000, "base": 38_100_000_000},
        "pinned": {"all": 40_600_000_000},
    }
    lines = places_table(status).splitlines()
    rows = {line[:15].strip(): line.split()[-2:] for line in lines}
    assert rows["base weights"] == ["38.10", "38.10"]
    assert rows["merged weights"] == ["38.10", "0.00"]
    assert rows["adapters (LoRA)"] == ["0.00", "2.50"]
    assert rows["video decoder"] == ["1.50", "0.00"]
    assert rows["total"] == ["77.70", "40.60"]
    assert len({len(line) for line in lines[:-2]}) == 1
    assert lines[-1] == "page-locked host memory: 40.60 GB"


def test_places_of_nothing() -> None:
    assert "total" in places_table({"device": {}, "host": {}, "pinned": {"all": 0}})


def boxes(svg: str) -> list[ElementTree.Element]:
    """The rectangles of stages: those with a tooltip."""
    return [box for box in ElementTree.fromstring(svg).iter(f"{SVG}rect") if box.find(f"{SVG}title") is not None]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("width", [320, 720, 1200])
def test_chart_is_to_scale_and_inside_the_picture(width: int) -> None:
    svg = stage_chart(RUN, width).svg()
    root = ElementTree.fromstring(svg)
    assert root.get("width") == str(width)
    times, memory = boxes(svg)[::2], boxes(svg)[1::2]
    assert len(times) == len(memory) == len(RUN)
    # A pixel of hairline, and two decimals
    assert float(times[1].get("width", 0)) == pytest.approx((width - 40) * 8600 / 11100 - 1, abs=0.01)
    assert float(memory[0].get("height", 0)) / float(memory[2].get("height", 0)) == pytest.approx(
        86.7 / 88.07, abs=1e-3
    )
    assert all(0 <= float(b.get("x", 0)) <= width - float(b.get("width", 0)) for b in root.iter(f"{SVG}rect"))
    assert all(float(t.get("y", 0)) < float(root.get("height", 0)) for t in root.iter(f"{SVG}text"))


def test_chart_says_every_name_time_and_peak() -> None:
    said = texts(stage_chart(RUN).svg())
    for words in (
        "prompt",
        "decode <a> & sound",
        "8.60 s",
        "0.02 s",
        "84.1 GB",
        "88.1 GB at most",
        "11.10 s in all",
    ):
        assert words in said


def test_chart_brings_its_own_background_and_nothing_from_outside() -> None:
    svg = stage_chart(RUN).svg()
    first = next(ElementTree.fromstring(svg).iter(f"{SVG}rect"))
    assert first.get("fill") == "#fbfbf9" and float(first.get("width", 0)) == 719
    assert "href" not in svg and "url(" not in svg and "<style" not in svg


def test_a_stage_that_runs_twice_has_one_line_of_the_legend() -> None:
    svg = stage_chart([record("decode", 500, 1), record("encode", 500, 2), record("decode", 250, 3)]).svg()
    assert "decode (2 times)" in texts(svg) and "0.75 s" in texts(svg)
    assert boxes(svg)[0].get("fill") == boxes(svg)[4].get("fill") != boxes(svg)[2].get("fill")


def test_a_stage_has_its_colour_also_where_others_did_not_run() -> None:
    names = ("text", "stage_1", "upsample", "stage_2", "decode", "stage_1 sampler")

    def colours(*ran: str) -> dict[str, str | None]:
        found = boxes(stage_chart([record(name, 100, 1) for name in ran]).svg())
        return {name: box.get("fill") for name, box in zip(ran, found[::2], strict=True)}

    whole = colours(*names)
    assert len(set(whole.values())) == len(names)
    assert colours("stage_1 sampler", "decode", "stage_1").items() <= whole.items()


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([], id="none"),
        pytest.param([record("instant", 0, 0)], id="zeros"),
        pytest.param([record("control \x00\x1b characters", 1, 1)], id="not-writable-in-xml"),
        pytest.param([record("long " * 60, 1, 1)] * 40, id="many-and-long"),
    ],
)
def test_chart_of_odd_records_is_valid(records: list[dict[str, Any]]) -> None:
    ElementTree.fromstring(stage_chart(records).svg())
