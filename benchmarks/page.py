"""The tables of ``docs/performance.md`` and ``benchmarks/LOG.md``, made from the figures in ``benchmarks/results``.

``python -m ltx2_two_stage.benchmarks.page`` writes them into the pages, between the marks that name them; a test
compares the pages with what this makes. Figures of one benchmark may lie in several files: of two rows for the same
thing the one in the file whose name sorts last counts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .dit import follows_flops
from .shapes import SHAPES
from .synthetic_models import PRECISIONS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "LOG.md")
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "Not measured yet."
_SWEPT = ("sizes", "lengths")
_SECTION = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, Any]
Results = Mapping[str, list[Row]]
"""The files' contents, by benchmark."""


def read_results(folder: Path = RESULTS) -> dict[str, list[Row]]:
    """Every file of figures that names its benchmark, in the order of the files' names."""
    results: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        if "benchmark" in figures:
            results.setdefault(figures["benchmark"], []).append(figures)
    return results


def rendered(page: str, results: Results) -> str:
    """The page with its tables made anew.

    Raises:
        KeyError: it names a table that nobody makes.
    """
    return _SECTION.sub(lambda m: f"{m[1]}\n{TABLES[m[2]](results) or NOT_MEASURED}\n\n{m[3]}", page)


def _rows(results: Results, benchmark: str, *keys: str) -> list[Row]:
    """Rows of all files, each thing once, where it stood first. Added to them: ``flash``, the release of FlashAttention
    that was installed (it may be a key), and ``first``, whether a row was its process' first."""
    found: dict[Any, Row] = {}
    for figures in results.get(benchmark, ()):
        flash = figures["machine"].get("flash_attention")
        for number, row in enumerate(figures["rows"]):
            told = {**row, "flash": flash, "first": number == 0}
            found[json.dumps([told[key] for key in keys])] = told
    return list(found.values())


def _by_shape(rows: Iterable[Row]) -> list[Row]:
    """In the order of the shapes; what is measured with FlashAttention behind what is not."""
    names = list(SHAPES)
    return sorted(rows, key=lambda row: (names.index(row["shape"]), row["flash"] or ""))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {line} |" for line in lines) if len(lines) > 2 else ""


def _spread(summary: Row, digits: int = 1) -> str:
    """Median, and from where to where."""
    return f"{summary['median']:,.{digits}f} ({summary['min']:,.{digits}f} to {summary['max']:,.{digits}f})"


def _or_dash(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)


def _size(row: Row) -> str:
    frames, height, width = row["size"]
    return f"{width}x{height}x{frames}"


def _gb(nbytes: float | None) -> str:
    return _or_dash(None if nbytes is None else nbytes / 1e9, ".2f")


def _machine(results: Results) -> str:
    """Every machine that any figures come from, with what each measured."""
    machines: dict[str, list[str]] = {}
    for benchmark, files in results.items():
        for figures in files:
            m = figures["machine"]
            words = [m["gpu"], f"torch {m['torch']}", f"Python {m['python']}"]
            words += [f"{name} {m[name]}" for name in ("driver", "triton") if m.get(name)]
            machines.setdefault(", ".join(words), []).append(benchmark)
    return "\n".join(f"- {words}: {', '.join(dict.fromkeys(names))}" for words, names in machines.items())


def _ceilings(results: Results) -> str:
    figures = _last_ceilings(results)
    if figures is None:
        return ""
    matmul, copies = figures["matmul"], figures["copies"]
    rows = [
        ["bf16 matmul 8192^3, at first", f"{matmul['bf16_short']:.0f} TFLOP/s"],
        ["bf16 matmul 8192^3, lasting", f"{matmul['bf16']:.0f} TFLOP/s"],
        ["fp8 matmul 8192^3, a scale per row, lasting", f"{_or_dash(matmul['fp8'])} TFLOP/s"],
        ["copy on the device, read and written", f"{copies['device']:,.0f} GB/s"],
        ["page-locked host to device; back", f"{copies['pinned_h2d']:.1f}; {copies['pinned_d2h']:.1f} GB/s"],
    ]
    return _table(["what", "measured"], rows)


def _gemms(results: Results) -> str:
    figures = _last_ceilings(results)
    gemms = figures["gemms"] if figures else ()
    rows = [[f"{g['m']:,}", f"{g['n']:,} x {g['k']:,}", f"{g['bf16']:.0f}", _or_dash(g.get("fp8"))] for g in gemms]
    return _table(["rows", "out x in", "bf16, TFLOP/s", "fp8, TFLOP/s"], rows)


def _attention(results: Results) -> str:
    figures = _last_ceilings(results)
    attention = figures["attention"] if figures else ()
    rows = [[f"{a['tokens']:,}", *(_or_dash(a[name]) for name in ("default", "cudnn", "flash"))] for a in attention]
    return _table(["tokens", "PyTorch's choice, TFLOP/s", "cuDNN", "PyTorch's flash"], rows)


def _last_ceilings(results: Results) -> Row | None:
    """Measured alone, or at the beginning of the comparison with peers."""
    alone = list(results.get("ceilings", ()))
    beside = [figures["ceilings"] for figures in results.get("peers", ()) if "ceilings" in figures]
    return (alone or beside or [None])[-1]


def _measured(results: Results) -> list[Row]:
    return _rows(results, "dit", "shape", "precision", "kernels", "flash")


def _steps(results: Results) -> list[Row]:
    rows = [row for row in _measured(results) if row["what"] not in _SWEPT]
    return sorted(_by_shape(rows), key=lambda row: PRECISIONS.index(row["precision"]))


def _dit(results: Results) -> str:
    rows = []
    for row in _steps(results):
        cells = [f"{row['shape']}: {row['what']}", row["precision"], row["kernels"], row["flash"] or "-"]
        cells.append(f"{row['tflop']:,.1f} of {row['tflop_unshared']:,.1f}")
        if "error" in row:
            rows.append([*cells, row["error"], *["-"] * 6])
            continue
        launched = row.get("launches") or {}
        difference = row.get("relative_l2")
        cells += [
            f"{row['floor_ms']:,.1f}",
            _spread(row["guided_ms"]),
            f"{row['times_floor']:.2f}",
            f"{row['tflop_per_s']:,.0f}",
            _or_dash(launched.get("kernels")),
            _gb(row["peak_bytes_beyond_weights"]),
            f"{difference['video']:.2%}, {difference['audio']:.2%}" if difference else "-",
        ]
        rows.append(cells)
    header = (
        "step|linears|kernels|flash-attn|TFLOP, of those without sharing|floor, ms|ms|times the floor|TFLOP/s|launches"
    )
    return _table([*header.split("|"), "GB beyond weights", "off float32: video, audio"], rows)


def _busy(results: Results) -> str:
    rows = []
    for row in _steps(results):
        launched = row.get("launches")
        if launched:
            ms = [launched["ms"].get(kind, 0.0) for kind in ("matmul", "attention", "other")]
            cells = [row["shape"], row["precision"], row["kernels"], row["flash"] or "-", *(f"{of:,.1f}" for of in ms)]
            rows.append([*cells, f"{row['guided_ms']['host']:,.1f}"])
    return _table(
        ["step", "linears", "kernels", "flash-attn", "matmul, ms", "attention, ms", "other, ms", "host, ms"], rows
    )


def _sweep(results: Results) -> str:
    swept = [row for row in _measured(results) if row["what"] in _SWEPT and row["flash"] is None]
    rows = [
        [
            row["shape"],
            row["precision"],
            row["kernels"],
            f"{row['tokens']['video']:,}",
            f"{row['tflop']:,.1f}",
            f"{row['guided_ms']['median']:,.1f}",
            f"{row['ms_per_tflop']:.3f}",
        ]
        for row in swept
        if "error" not in row
    ]
    table = _table(["step", "linears", "kernels", "video tokens", "TFLOP", "ms", "ms per TFLOP"], rows)
    follows = follows_flops(swept) or {}
    notes = [
        f"- {name}: {of['ms_per_tflop']:.3f} ms per TFLOP, within {of['within']:.1%}" for name, of in follows.items()
    ]
    return "\n".join([table, "", "Above 4,000 video tokens:", "", *notes]) if notes else table


def _decode(results: Results) -> str:
    rows = []
    for row in _rows(results, "decode", "part", "what"):
        name = f"{row['part']}, {row['what']}" if row["whole"] else f"of it: {row['part']}"
        if "error" in row:
            rows.append([name, row["error"], "-", "-", "-"])
            continue
        floor = _or_dash(row.get("floor_ms"), ",.1f")
        cells = [name, _spread(row["ms"]), f"{row['tflop']:,.1f}", floor, _gb(row["peak_bytes_beyond_weights"])]
        rows.append(cells)
    return _table(["part", "ms", "TFLOP", "floor at the bf16 rate, ms", "GB beyond weights"], rows)


_STAGES = ("text", "stage_1", "upsample", "stage_2", "decode")


def _runs(results: Results) -> list[Row]:
    return [row for row in _rows(results, "e2e", "recipe", "size", "precision", "mode") if row.get("warm")]


def _e2e(results: Results) -> str:
    rows = []
    for row in _runs(results):
        warm = row["warm"]
        cells = [f"{row['recipe']}, {_size(row)}", row["precision"], row["mode"], _spread(warm["total_s"], 2)]
        cells += [_or_dash(warm["stages"].get(stage, {}).get("ms")) for stage in _STAGES]
        first = f"{row['first_run']['total_s']:.1f}{', of the process' if row['first'] else ''}"
        rows.append([*cells, f"{warm['peak_bytes'] / 1e9:.1f}", first])
    stages = [f"{stage.replace('_', ' ')}, ms" for stage in _STAGES]
    return _table(["run", "linears", "mode", "warm, s", *stages, "peak, GB", "first run, s"], rows)


def _fp8(results: Results) -> str:
    names = ("stage1_video", "stage1_audio", "stage2_video", "stage2_audio", "audio_waveform")
    rows = []
    for row in _runs(results):
        if "differences" in row:
            differences = row["differences"]
            cells = [f"{row['recipe']}, {_size(row)}", f"{row['precision']} against {row['against']}"]
            cells += [_or_dash(differences.get(name), ".2%") for name in names]
            rows.append([*cells, _or_dash(differences["frames_psnr_db"], ".1f")])
    return _table(["run", "linears", *(name.replace("_", " ") for name in names), "frames, PSNR in dB"], rows)


_CONTESTANTS = ("ours eager", "diffusers", "diffusers compiled", "ltx-core", "ltx-core compiled", "ltx-core captured")


def _peers(results: Results) -> str:
    rows = []
    for row in _by_shape(_rows(results, "peers", "shape", "flash")):
        cells = [f"{row['shape']}: {row['what']}", row["flash"] or "-", f"{row['floor_ms']:,.1f}"]
        rows.append([*cells, *_compared(row)])
    return _table(
        ["step", "flash-attn", "floor, ms", "ours, ms", *(f"{name}, ms" for name in _CONTESTANTS), "ours / best peer"],
        rows,
    )


def _peers_video(results: Results) -> str:
    videos = [figures["video"] for figures in results.get("peers", ()) if "video" in figures]
    found = {_size(video): _compared(video) for video in videos}
    rows = [[size, cells[0], cells[1], cells[2], cells[-1]] for size, cells in found.items()]
    return _table(["clip", "ours, ms", "ours eager, ms", "diffusers, ms", "ours / diffusers"], rows)


def _compared(row: Row) -> list[str]:
    """Our time, the others', and the ratio to the best peer's."""
    ms, errors = row["ms"], row["errors"]
    cells = [_spread(ms["ours"]) if "ours" in ms else errors.get("ours", "-")]
    for name in _CONTESTANTS:
        cells.append(f"{ms[name]['median']:,.1f}" if name in ms else errors.get(name, "-"))
    best = row.get("best_peer")
    return [*cells, f"{_spread(row['ratios'][best], 3)}, {best}" if best and "ratios" in row else "-"]


TABLES: Mapping[str, Callable[[Results], str]] = {
    "machine": _machine,
    "ceilings": _ceilings,
    "gemms": _gemms,
    "attention": _attention,
    "dit": _dit,
    "busy": _busy,
    "sweep": _sweep,
    "decode": _decode,
    "e2e": _e2e,
    "fp8": _fp8,
    "peers": _peers,
    "peers-video": _peers_video,
}


def main() -> None:
    """Writes the tables into the pages."""
    results = read_results()
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8"), results), encoding="utf-8")
        sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
