"""What a run cost, for people: a text table and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

_HEADINGS = ("stage", "seconds", "peak GB", "to device GB", "to host GB")
_PLACE_HEADINGS = ("what is where", "device GB", "host GB")
# The switchable component's parts, as the manager calls them
_PLACE_NAMES = {"base": "base weights", "merged": "merged weights", "adapters": "adapters (LoRA)"}

# Each has its own colour, with and without the others
_STAGES = ("text", "stage_1", "upsample", "stage_2", "decode")
# Okabe and Ito's colours, told apart with any colour vision, without the dark ones: dark text is read on all of these
_COLOURS = ("#56b4e9", "#e69f00", "#3cb995", "#f0e442", "#e08fbb", "#e8743b", "#a9a9f5", "#b5b5b5")
_PANEL, _EDGE, _TEXT, _FAINT = "#fbfbf9", "#d4d4d0", "#1c1c1e", "#5c5c60"

_PADDING, _FONT_SIZE = 20, 13
_CHARACTER_WIDTH = 7.3  # of 13 px sans-serif digits and letters, on the wide side
_BAR_HEIGHT, _MEMORY_HEIGHT, _LEGEND_ROW = 34, 90, 22


def stage_table(records: Sequence[Mapping[str, Any]], mode: str, reason: str, notices: Sequence[str] = ()) -> str:
    """An aligned text table of the stages, and the mode with its reason below it; above it what is to be read first.

    Args:
        records: what ``take_records`` gives: name, ms, peak_bytes, h2d_bytes and d2h_bytes of each stage.
        mode: the device mode's name.
        reason: why it was chosen, in words.
        notices: sentences for the user.
    """
    rows = [_row(str(r["name"]), r["ms"], r["peak_bytes"], r["h2d_bytes"], r["d2h_bytes"]) for r in records]
    peak = max((r["peak_bytes"] for r in records), default=0)
    ms, to_device, to_host = (sum(r[key] for r in records) for key in ("ms", "h2d_bytes", "d2h_bytes"))
    total = _row("total", ms, peak, to_device, to_host)
    lines = _table(_HEADINGS, [*rows, total])
    said = [*(f"Note: {notice}" for notice in notices), ""] if notices else []
    return "\n".join([*said, *lines, "", f"mode: {mode} ({reason})"])


def places_table(status: Mapping[str, Mapping[str, int]]) -> str:
    """An aligned text table of what is held where now.

    Args:
        status: what ``DeviceManager.status`` gives: bytes by place, and in it by what they hold.
    """
    device, host = status["device"], status["host"]
    named = [(_place_name(name), device.get(name, 0), host.get(name, 0)) for name in dict.fromkeys([*device, *host])]
    total = ("total", sum(device.values()), sum(host.values()))
    rows = [(name, f"{on_device / 1e9:.2f}", f"{on_host / 1e9:.2f}") for name, on_device, on_host in (*named, total)]
    pinned = sum(status["pinned"].values())
    return "\n".join([*_table(_PLACE_HEADINGS, rows), "", f"page-locked host memory: {pinned / 1e9:.2f} GB"])


@dataclass(frozen=True)
class Box:
    """A filled rectangle; those with a title are stages."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str = ""


@dataclass(frozen=True)
class Words:
    """A line of text; ``x`` is where it starts, ends or has its middle, as ``anchor`` says, and ``y`` its base line."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False
    colour: str = _TEXT


@dataclass(frozen=True)
class Chart:
    """What :func:`stage_chart` lays out, in pixels, for whoever draws it."""

    width: int
    height: int
    boxes: Sequence[Box]
    words: Sequence[Words]
    panel: str = _PANEL
    edge: str = _EDGE
    font_size: int = _FONT_SIZE

    def svg(self) -> str:
        """The chart as SVG, on a background of its own."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" aria-label="Time and peak memory of each stage" '
            f'font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" font-size="{self.font_size}">',
            f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="8" '
            f'fill="{self.panel}" stroke="{self.edge}"/>',
            *map(_svg_box, self.boxes),
            *map(_svg_words, self.words),
        ]
        return "\n".join([*parts, "</svg>"])


def stage_chart(records: Sequence[Mapping[str, Any]], width: int = 720) -> Chart:
    """Time as one stacked bar, the peak memory of each stage below it, and a legend.

    Args:
        records: as for ``stage_table``. Stages of one name share a colour and a line of the legend.
        width: of the picture, in pixels; the height follows from the number of stages.
    """
    stages = _Stage.of(records)
    total_ms = sum(stage.ms for stage in stages)
    peak = max((stage.peak_bytes for stage in stages), default=0)
    inner = width - 2 * _PADDING
    boxes: list[Box] = []
    words: list[Words] = []
    y = _PADDING + _FONT_SIZE
    words.append(Words(_PADDING, y, "Time of each stage", bold=True))
    words.append(Words(width - _PADDING, y, f"{total_ms / 1000:.2f} s in all", "end"))
    y += 10
    memory_top = y + _BAR_HEIGHT + 36
    words.append(Words(_PADDING, memory_top - 12, "Peak memory of each stage", bold=True))
    words.append(Words(width - _PADDING, memory_top - 12, f"{peak / 1e9:.1f} GB at most", "end"))
    floor = memory_top + _MEMORY_HEIGHT
    x = float(_PADDING)
    for stage in stages:
        span = inner * stage.ms / total_ms if total_ms > 0 else 0.0
        drawn = span - 1 if span > 3 else span  # a hairline to the right neighbour where it is wide enough to spare one
        height = _MEMORY_HEIGHT * stage.peak_bytes / peak if peak > 0 else 0.0
        seconds, gigabytes = f"{stage.ms / 1000:.2f} s", f"{stage.peak_bytes / 1e9:.1f} GB"
        title = f"{stage.name}: {seconds}, {gigabytes}"
        boxes.append(Box(x, y, drawn, _BAR_HEIGHT, stage.colour, title))
        boxes.append(Box(x, floor - height, drawn, height, stage.colour, title))
        middle = x + span / 2
        if _text_width(seconds) + 8 <= span:
            words.append(Words(middle, y + _BAR_HEIGHT / 2 + 5, seconds, "middle"))
        if _text_width(gigabytes) + 8 <= span and height >= 20:
            words.append(Words(middle, floor - height + 16, gigabytes, "middle"))
        x += span
    boxes.append(Box(_PADDING, floor, inner, 1, _FAINT))
    bottom = float(floor + 30)
    if stages:
        keys, lines, bottom = _legend(stages, bottom, inner)
        boxes.extend(keys)
        words.extend(lines)
    else:
        words.append(Words(_PADDING, bottom, "No stage has run yet.", colour=_FAINT))
    return Chart(width, round(bottom + _PADDING), boxes, words)


@dataclass(frozen=True)
class _Stage:
    name: str
    ms: float
    peak_bytes: int
    colour: str

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> list[_Stage]:
        names = list(dict.fromkeys([*_STAGES, *(_printable(record["name"]) for record in records)]))
        return [
            cls(name, max(0.0, float(r["ms"])), int(r["peak_bytes"]), _COLOURS[names.index(name) % len(_COLOURS)])
            for r in records
            for name in (_printable(r["name"]),)
        ]


def _legend(stages: Sequence[_Stage], top: float, inner: float) -> tuple[list[Box], list[Words], float]:
    """A line for each name, in two columns where there is room, filled downwards; and where the last line ends."""
    by_name: dict[str, list[_Stage]] = {}
    for stage in stages:
        by_name.setdefault(stage.name, []).append(stage)
    columns = 2 if inner >= 560 and len(by_name) > 1 else 1
    gap = 36
    column_width = (inner - gap * (columns - 1)) / columns
    rows = -(-len(by_name) // columns)
    keys, lines = [], []
    for i, (name, same) in enumerate(by_name.items()):
        x, y = _PADDING + (i // rows) * (column_width + gap), top + (i % rows) * _LEGEND_ROW
        seconds = f"{sum(stage.ms for stage in same) / 1000:.2f} s"
        gigabytes = f"{max(stage.peak_bytes for stage in same) / 1e9:.1f} GB"
        times = f" ({len(same)} times)" if len(same) > 1 else ""
        room = column_width - 20 - 134 - _text_width(times)
        keys.append(Box(x, y - 10, 12, 12, same[0].colour))
        lines.append(Words(x + 20, y, _shortened(name, room) + times))
        lines.append(Words(x + column_width - 76, y, seconds, "end", colour=_FAINT))
        lines.append(Words(x + column_width, y, gigabytes, "end", colour=_FAINT))
    return keys, lines, top + max(0, rows - 1) * _LEGEND_ROW


def _row(name: str, ms: float, peak: int, to_device: int, to_host: int) -> tuple[str, ...]:
    return (name, f"{ms / 1000:.3f}", f"{peak / 1e9:.2f}", f"{to_device / 1e9:.2f}", f"{to_host / 1e9:.2f}")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines, with a rule below the headings and one above the last row."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    lines = [_aligned(row, widths) for row in rows]
    return [_aligned(headings, widths), rule, *lines[:-1], rule, lines[-1]]


def _place_name(name: str) -> str:
    return _PLACE_NAMES.get(name, name.replace("_", " "))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells)


def _svg_words(words: Words) -> str:
    return (
        f'<text x="{words.x:.2f}" y="{words.y:.2f}" text-anchor="{words.anchor}" '
        f'font-weight="{600 if words.bold else 400}" fill="{words.colour}">{escape(words.text)}</text>'
    )


def _svg_box(box: Box) -> str:
    place = f'x="{box.x:.2f}" y="{box.y:.2f}" width="{box.width:.2f}" height="{box.height:.2f}"'
    start = f"<rect {place} fill={quoteattr(box.colour)}"
    return f"{start}><title>{escape(box.title)}</title></rect>" if box.title else f"{start}/>"


def _text_width(text: str) -> float:
    return len(text) * _CHARACTER_WIDTH


def _shortened(text: str, room: float) -> str:
    fitting = max(1, int(room / _CHARACTER_WIDTH))
    return text if len(text) <= fitting else text[: fitting - 1] + "…"


def _printable(name: object) -> str:
    """XML has no way to write most control characters."""
    return "".join(character for character in str(name) if character.isprintable())
