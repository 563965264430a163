"""``docs/performance.md`` and ``benchmarks/LOG.md`` say what the figures in ``benchmarks/results`` say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.benchmarks import page
from ltx2_two_stage.benchmarks.decode import DecodeBenchmark
from ltx2_two_stage.benchmarks.dit import DitBenchmark
from ltx2_two_stage.benchmarks.measure import Samples
from ltx2_two_stage.benchmarks.peers import compared
from ltx2_two_stage.benchmarks.shapes import Shape
from ltx2_two_stage.benchmarks.synthetic_models import SyntheticModels
from ltx2_two_stage.ltx2_core.types import VideoSize

CPU = torch.device("cpu")
SMALL = VideoSize(9, 64, 128)
MACHINE = {"gpu": "a GPU", "torch": "2.11", "python": "3.12"}


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_the_pages_show_what_was_measured(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    again = page.rendered(text, page.read_results())
    assert text == again, "run python -m ltx2_two_stage.benchmarks.page"


def test_the_pages_have_every_table_once() -> None:
    texts = [path.read_text(encoding="utf-8") for path in page.PAGES]
    named = [name for text in texts for name in re.findall(r"<!-- table: ([\w-]+) -->", text)]
    assert sorted(named) == sorted(page.TABLES)


def test_the_page_of_results_is_short() -> None:
    assert len(page.PAGES[0].read_text(encoding="utf-8").splitlines()) <= 140


def test_a_table_that_nobody_makes() -> None:
    with pytest.raises(KeyError, match="weather"):
        page.rendered("<!-- table: weather -->\n<!-- end -->", {})


def cells(table: str) -> list[list[str]]:
    """Rows of a table without its header; every one as wide as that."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
    return rows[2:]


def test_tables_of_what_the_benchmarks_write(tmp_path: Path) -> None:
    """Figures of tiny models, through JSON and into every table that they fill."""
    tiny = SyntheticModels("2.3", tiny=True)
    dit = DitBenchmark(lambda _: tiny, [Shape("A1", SMALL, "one pass")], repeat=1).run(lambda _: None, CPU)
    # A row of a sweep, above 4,000 tokens, without the time that it takes
    row = {**dit["rows"][0], "shape": "4096x1024", "what": "sizes", "tokens": {"video": 8192}, "ms_per_tflop": 2.0}
    dit["rows"].append(row)
    decode = DecodeBenchmark(tiny, (SMALL,), repeat=1).run(lambda _: None, CPU)
    for name, figures in (("a-dit", dit), ("b-decode", decode)):
        (tmp_path / f"{name}.json").write_text(json.dumps(figures))
    (tmp_path / "modes.json").write_text("{}")
    results = page.read_results(tmp_path)
    assert set(results) == {"dit", "decode"}
    auto, eager = cells(page.TABLES["dit"](results))
    assert auto[:3] == ["A1: one pass", "bf16", "auto"] and eager[2] == "eager"
    assert re.fullmatch(r"0\.\d\d%, 0\.\d\d%", auto[-1])
    assert len(cells(page.TABLES["decode"](results))) == 8
    assert page.TABLES["sweep"](results).endswith("- bf16 auto: 2.000 ms per TFLOP, within 0.0%")
    assert page.TABLES["peers"](results) == ""
    assert page.TABLES["machine"](results).startswith("- cpu, torch")


def peers(*ours: float, shape: str = "A1") -> dict[str, Any]:
    samples = {name: Samples(ms=list(ours), host_ms=list(ours)) for name in ("ours", "ours eager")}
    samples["diffusers"] = Samples(ms=[20.0] * len(ours), host_ms=[1.0] * len(ours))
    samples["ltx-core"] = Samples(error="out of memory")
    row = {"shape": shape, "what": "one pass", "floor_ms": 5.0, **compared(samples)}
    return {
        "benchmark": "peers",
        "machine": MACHINE,
        "rows": [row],
        "video": {"size": [9, 64, 128], **compared(samples)},
    }


def test_the_last_file_counts() -> None:
    results = {"peers": [peers(10.0, 12.0), peers(30.0, shape="B"), peers(14.0)]}
    first, second = cells(page.TABLES["peers"](results))
    assert first[0] == "A1: one pass" and second[0] == "B: one pass"
    assert first[3] == "14.0 (14.0 to 14.0)" and first[-1] == "0.700 (0.700 to 0.700), diffusers"
    assert first[7] == "out of memory" and first[6] == "-"
    (video,) = cells(page.TABLES["peers-video"](results))
    assert video[0] == "128x64x9" and video[-1].startswith("0.700")


def test_what_is_measured_with_flash_attention_has_a_row_of_its_own() -> None:
    with_it = peers(8.0) | {"machine": MACHINE | {"flash_attention": "4.0"}}
    first, second, third = cells(page.TABLES["peers"]({"peers": [peers(9.0, shape="B"), with_it, peers(10.0)]}))
    assert [row[:2] for row in (first, second, third)] == [
        ["A1: one pass", "-"],
        ["A1: one pass", "4.0"],
        ["B: one pass", "-"],
    ]
    assert (first[3][:4], second[3][:3]) == ("10.0", "8.0")


def test_steps_by_precision_then_shape() -> None:
    def step(shape: str, precision: str, flash: str | None = None) -> dict[str, Any]:
        row = {"shape": shape, "what": "one pass", "precision": precision, "kernels": "auto", "tflop": 1.0}
        row |= {"tflop_unshared": 1.0, "error": "out of memory"}
        return {"benchmark": "dit", "machine": MACHINE | {"flash_attention": flash}, "rows": [row]}

    files = [step("D", "fp8"), step("D", "bf16", "4.0"), step("D", "bf16"), step("A1", "bf16"), step("A1", "fp8")]
    shown = [(row[1], row[0][:2].strip(":"), row[3]) for row in cells(page.TABLES["dit"]({"dit": files}))]
    expected = [("bf16", "A1", "-"), ("bf16", "D", "-"), ("bf16", "D", "4.0"), ("fp8", "A1", "-"), ("fp8", "D", "-")]
    assert shown == expected


def test_runs_and_what_fp8_changes() -> None:
    def run(precision: str, **more: Any) -> dict[str, Any]:
        stages = {name: {"ms": 1000.0, "peak_bytes": 10**9} for name in ("text", "stage_1", "decode")}
        total = {"min": 3.0, "median": 3.5, "max": 4.0, "runs": 3}
        warm = {"total_s": total, "stages": stages, "peak_bytes": 5 * 10**9}
        first = {"total_s": 9.0, "stages": []}
        return {
            "recipe": "one-stage", "size": [9, 64, 128], "precision": precision, "mode": "resident",
            "first_run": first, "warm": warm, **more,
        }  # fmt: skip

    differences = {"stage1_video": 0.05, "stage1_audio": 0.04, "audio_waveform": 0.1, "frames_psnr_db": None}
    rows = [run("bf16"), run("fp8", against="bf16", differences=differences)]
    results = {"e2e": [{"benchmark": "e2e", "machine": MACHINE, "rows": rows}]}
    whole = cells(page.TABLES["e2e"](results))
    assert whole[0] == [
        "one-stage, 128x64x9", "bf16", "resident", "3.50 (3.00 to 4.00)", "1,000", "1,000", "-", "-", "1,000",
        "5.0", "9.0, of the process",
    ]  # fmt: skip
    assert whole[1][-1] == "9.0"
    assert cells(page.TABLES["fp8"](results)) == [
        ["one-stage, 128x64x9", "fp8 against bf16", "5.00%", "4.00%", "-", "-", "10.00%", "-"]
    ]


def test_ceilings_alone_before_those_beside_peers() -> None:
    def figures(rate: float) -> dict[str, Any]:
        return {
            "benchmark": "ceilings",
            "machine": MACHINE,
            "matmul": {"bf16": rate, "bf16_short": 800.0, "fp8": None},
            "gemms": [{"m": 1536, "n": 4096, "k": 4096, "bf16": rate}],
            "attention": [{"tokens": 1536, "default": 600.0, "cudnn": 600.0, "flash": None}],
            "copies": {"device": 4280.0, "pinned_h2d": 55.4, "pinned_d2h": 55.3},
        }

    beside = {"peers": [{"benchmark": "peers", "machine": MACHINE, "rows": [], "ceilings": figures(600.0)}]}
    assert cells(page.TABLES["ceilings"](beside))[1] == ["bf16 matmul 8192^3, lasting", "600 TFLOP/s"]
    results = {**beside, "ceilings": [figures(667.0)]}
    assert cells(page.TABLES["ceilings"](results))[1] == ["bf16 matmul 8192^3, lasting", "667 TFLOP/s"]
    assert cells(page.TABLES["gemms"](results)) == [["1,536", "4,096 x 4,096", "667", "-"]]
    assert cells(page.TABLES["attention"](results)) == [["1,536", "600", "600", "-"]]
