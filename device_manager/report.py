"""What a run cost, for people: a text table and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

_HEADINGS = ("stage", "seconds", "peak GB", "to device GB", "to host GB")

# Okabe and Ito's colours, told apart with any colour vision, without the dark ones: dark text is read on all of these
_COLOURS = ("#56b4e9", "#e69f00", "#3cb995", "#f0e442", "#e08fbb", "#e8743b", "#a9a9f5", "#b5b5b5")
_PANEL, _EDGE, _TEXT, _FAINT = "#fbfbf9", "#d4d4d0", "#1c1c1e", "#5c5c60"

_PADDING, _FONT_SIZE = 20, 13
_CHARACTER_WIDTH = 7.3  # of 13 px sans-serif digits and letters, on the wide side
_BAR_HEIGHT, _MEMORY_HEIGHT, _LEGEND_ROW = 34, 90, 22


def stage_table(records: Sequence[Mapping[str, Any]], mode: str, reason: str) -> str:
    """An aligned text table of the stages, and the mode with its reason below it.

    Args:
        records: what ``take_records`` gives: name, ms, peak_bytes, h2d_bytes and d2h_bytes of each stage.
        mode: the device mode's name.
        reason: why it was chosen, in words.
    """
    rows = [_row(str(r["name"]), r["ms"], r["peak_bytes"], r["h2d_bytes"], r["d2h_bytes"]) for r in records]
    peak = max((r["peak_bytes"] for r in records), default=0)
    ms, to_device, to_host = (sum(r[key] for r in records) for key in ("ms", "h2d_bytes", "d2h_bytes"))
    total = _row("total", ms, peak, to_device, to_host)
    widths = [max(len(row[i]) for row in (_HEADINGS, *rows, total)) for i in range(len(_HEADINGS))]
    rule = "  ".join("-" * width for width in widths)
    lines = [_aligned(_HEADINGS, widths), rule, *(_aligned(row, widths) for row in rows), rule, _aligned(total, widths)]
    return "\n".join([*lines, "", f"mode: {mode} ({reason})"])


def stage_chart_svg(records: Sequence[Mapping[str, Any]], width: int = 720) -> str:
    """An SVG of its own background: time as one stacked bar, the peak memory of each stage below it, and a legend.

    Args:
        records: as for ``stage_table``. Stages of one name share a colour and a line of the legend.
        width: of the picture, in pixels; the height follows from the number of stages.
    """
    stages = _Stage.of(records)
    total_ms = sum(stage.ms for stage in stages)
    peak = max((stage.peak_bytes for stage in stages), default=0)
    inner = width - 2 * _PADDING
    parts: list[str] = []
    y = _PADDING + _FONT_SIZE
    parts.append(_words(_PADDING, y, "Time of each stage", weight="600"))
    parts.append(_words(width - _PADDING, y, f"{total_ms / 1000:.2f} s in all", anchor="end"))
    y += 10
    memory_top = y + _BAR_HEIGHT + 36
    parts.append(_words(_PADDING, memory_top - 12, "Peak memory of each stage", weight="600"))
    parts.append(_words(width - _PADDING, memory_top - 12, f"{peak / 1e9:.1f} GB at most", anchor="end"))
    floor = memory_top + _MEMORY_HEIGHT
    x = float(_PADDING)
    for stage in stages:
        span = inner * stage.ms / total_ms if total_ms > 0 else 0.0
        height = _MEMORY_HEIGHT * stage.peak_bytes / peak if peak > 0 else 0.0
        seconds, gigabytes = f"{stage.ms / 1000:.2f} s", f"{stage.peak_bytes / 1e9:.1f} GB"
        title = f"{stage.name}: {seconds}, {gigabytes}"
        parts.append(_box(x, y, span, _BAR_HEIGHT, stage.colour, title))
        parts.append(_box(x, floor - height, span, height, stage.colour, title))
        middle = x + span / 2
        if _text_width(seconds) + 8 <= span:
            parts.append(_words(middle, y + _BAR_HEIGHT / 2 + 5, seconds, anchor="middle"))
        if _text_width(gigabytes) + 8 <= span and height >= 20:
            parts.append(_words(middle, floor - height + 16, gigabytes, anchor="middle"))
        x += span
    parts.append(f'<path d="M{_PADDING} {floor + 0.5}H{width - _PADDING}" stroke="{_FAINT}"/>')
    legend, bottom = _legend(stages, floor + 30, inner)
    if not stages:
        legend, bottom = [_words(_PADDING, floor + 30, "No stage has run yet.", colour=_FAINT)], floor + 30
    height_of_all = round(bottom + _PADDING)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height_of_all}" '
        f'viewBox="0 0 {width} {height_of_all}" role="img" aria-label="Time and peak memory of each stage" '
        f'font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" font-size="{_FONT_SIZE}">'
    )
    panel = (
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height_of_all - 1}" rx="8" '
        f'fill="{_PANEL}" stroke="{_EDGE}"/>'
    )
    return "\n".join([head, panel, *parts, *legend, "</svg>"])


@dataclass(frozen=True)
class _Stage:
    name: str
    ms: float
    peak_bytes: int
    colour: str

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> list[_Stage]:
        names = list(dict.fromkeys(_printable(record["name"]) for record in records))
        return [
            cls(name, max(0.0, float(r["ms"])), int(r["peak_bytes"]), _COLOURS[names.index(name) % len(_COLOURS)])
            for r in records
            for name in (_printable(r["name"]),)
        ]


def _legend(stages: Sequence[_Stage], top: float, inner: float) -> tuple[list[str], float]:
    """A line for each name, in two columns where there is room, filled downwards; and where the last line ends."""
    by_name: dict[str, list[_Stage]] = {}
    for stage in stages:
        by_name.setdefault(stage.name, []).append(stage)
    columns = 2 if inner >= 560 and len(by_name) > 1 else 1
    gap = 36
    column_width = (inner - gap * (columns - 1)) / columns
    rows = -(-len(by_name) // columns)
    parts = []
    for i, (name, same) in enumerate(by_name.items()):
        x, y = _PADDING + (i // rows) * (column_width + gap), top + (i % rows) * _LEGEND_ROW
        seconds = f"{sum(stage.ms for stage in same) / 1000:.2f} s"
        gigabytes = f"{max(stage.peak_bytes for stage in same) / 1e9:.1f} GB"
        times = f" ({len(same)} times)" if len(same) > 1 else ""
        room = column_width - 20 - 134 - _text_width(times)
        parts.append(f'<rect x="{x:.2f}" y="{y - 10}" width="12" height="12" rx="2" fill="{same[0].colour}"/>')
        parts.append(_words(x + 20, y, _shortened(name, room) + times))
        parts.append(_words(x + column_width - 76, y, seconds, anchor="end", colour=_FAINT))
        parts.append(_words(x + column_width, y, gigabytes, anchor="end", colour=_FAINT))
    return parts, top + max(0, rows - 1) * _LEGEND_ROW


def _row(name: str, ms: float, peak: int, to_device: int, to_host: int) -> tuple[str, ...]:
    return (name, f"{ms / 1000:.3f}", f"{peak / 1e9:.2f}", f"{to_device / 1e9:.2f}", f"{to_host / 1e9:.2f}")


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells)


def _words(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400", colour: str = _TEXT) -> str:
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _box(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    """A rectangle with a hairline to its right neighbour where it is wide enough to spare one."""
    drawn = width - 1 if width > 3 else width
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{drawn:.2f}" height="{height:.2f}" fill={quoteattr(colour)}>'
        f"<title>{escape(title)}</title></rect>"
    )


def _text_width(text: str) -> float:
    return len(text) * _CHARACTER_WIDTH


def _shortened(text: str, room: float) -> str:
    fitting = max(1, int(room / _CHARACTER_WIDTH))
    return text if len(text) <= fitting else text[: fitting - 1] + "…"


def _printable(name: object) -> str:
    """XML has no way to write most control characters."""
    return "".join(character for character in str(name) if character.isprintable())
