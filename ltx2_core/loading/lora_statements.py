"""What a LoRA file says about itself in its metadata: the one reader of every trainer's spelling.

Read are ``lora_adapter_metadata`` as diffusers writes it, PEFT's configuration under the names that people give it,
kohya's ``ss_network_*`` with ``ss_network_args``, OneTrainer's ``ot_config``, and the same fields as plain entries.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..plain_text import LONGEST_LINE, plain
from .lora_keys import other_part

__all__ = ["LoRAStatements", "StatementProblem"]

# Entries that hold a JSON object, the most exact ones first
_OBJECTS = (
    "lora_adapter_metadata",
    "adapter_config",
    "adapter_config.json",
    "peft_config",
    "lora_config",
    "network_config",
    "ss_network_args",
    "ot_config",
    "config",
)
_LONGEST_JSON = 4_000_000  # characters; patterns for every layer of the transformer take 200,000
_DEEPEST = 6
# Spellings of a field, in lower case and without "ss_" -> ours
_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("r", "rank", "dim", "lora_r", "lora_rank", "lora_dim", "network_dim", "network_rank"), "rank"),
    **dict.fromkeys(("alpha", "lora_alpha", "network_alpha"), "alpha"),
    **dict.fromkeys(("use_rslora", "use_rs_lora", "rslora", "rs_lora", "rank_stabilized"), "rslora"),
    **dict.fromkeys(("use_dora", "dora", "dora_wd", "weight_decompose", "lora_decompose"), "dora"),
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
_SWITCHES: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "off", "", "none", "null"), False),
}
_NOTHING = frozenset({"", "none", "null"})
# Names of the transformer, or of no component at all
_OWN = frozenset({"", "transformer", "diffusion_model", "model.diffusion_model", "base_model.model", "model", "unet"})
_OWN_TOO = frozenset({"dit", "pipe.dit", "network", "lora", "default", "params", "peft_config", "lora_config"})
# alpha / rank beyond this is damage: trainers use 0.01 to 64
LARGEST_SCALE = 10_000.0
_LARGEST_NUMBER = 1e6

_REFERENCE_KEY = re.compile(
    r"reference_(downscale|spatial_scale|temporal_scale|downsample)_factor$|(^|_)(is_)?ic_?lora(_|$)|(v2v|av_ic)_training$"
)
_STRATEGY_KEY = re.compile(r"(strategy|strategy\.name|lora_type|training_(mode|type)|conditioning\.mode)$")
_REFERENCE_STRATEGIES = frozenset({"ic_lora", "iclora", "v2v", "video_to_video", "av_ic", "audio_ref_ic"})
_TRAINERS = ("modelspec.implementation", "software", "ss_network_module", "trainer", "ot_revision")
_MARKS = ("scale_factor", "reference_", "ic_lora", "iclora", "strategy")


class StatementProblem(ValueError):
    """What the metadata says cannot be; the text is the rest of a sentence about the file."""


@dataclass(frozen=True)
class LoRAStatements:
    """Alpha, rank and kind that the metadata of a LoRA states.

    Attributes:
        alpha, rank: for every layer; None where nothing is said.
        alphas, ranks: for the layers that a pattern matches, in the file's order.
        rank_stabilised: alpha is divided by the square root of the rank (rsLoRA).
        dora: the file says that it is a DoRA.
        source: entry that states alpha, or "".
        trainer: what wrote the file, or "".
        reference: entry that marks an IC-LoRA, or "".
        saves_scalars: alpha is stated by a trainer of kohya's family, which saves an .alpha with every layer as well.
        problems: what is wrong with the entries that state alpha, as rests of sentences.
    """

    alpha: float | None = None
    rank: float | None = None
    alphas: LayerPatterns = field(default_factory=lambda: LayerPatterns({}))
    ranks: LayerPatterns = field(default_factory=lambda: LayerPatterns({}))
    rank_stabilised: bool = False
    dora: bool = False
    source: str = ""
    trainer: str = ""
    reference: str = ""
    saves_scalars: bool = False
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> LoRAStatements:
        """Never raises: what cannot be used is listed in :attr:`problems`."""
        found = _Found()
        objects = {}
        for name, text in metadata.items():
            if _is_object(name, text) or _may_mark(name, text):
                objects[name] = found.parse(name, text, needed=_is_object(name, text))
        for known in _OBJECTS:
            for name, value in objects.items():
                if name.lower() == known:
                    found.take_object(name, _as_fields(value))
        found.take_plain(metadata)
        return cls(
            alpha=found.numbers.get("alpha"),
            rank=found.numbers.get("rank"),
            alphas=found.patterns.get("alpha_pattern", LayerPatterns({})),
            ranks=found.patterns.get("rank_pattern", LayerPatterns({})),
            rank_stabilised=found.switches.get("rslora", False),
            dora=found.switches.get("dora", False),
            source=found.sources.get("alpha") or found.sources.get("alpha_pattern", ""),
            trainer=_trainer(metadata),
            reference=_reference(metadata, objects),
            saves_scalars=found.sources.get("alpha", "").startswith("ss_") and "ss_network_module" in metadata,
            problems=tuple(found.problems),
        )

    def alpha_of(self, names: Sequence[str], rank: int) -> float | None:
        """Alpha of a layer, as it counts divided by the rank of its matrices; None where nothing is said.

        Args:
            names: of the layer, in every spelling that a pattern may be meant for.
            rank: of its matrices.

        Raises:
            StatementProblem: rsLoRA without an alpha.
        """
        alpha = self.alphas.find(names)
        alpha = self.alpha if alpha is None else alpha
        if alpha is None:
            if self.rank_stabilised:
                raise StatementProblem("is an rsLoRA that states no alpha")
            return None
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha

    def rank_of(self, names: Sequence[str]) -> float | None:
        """The rank that the metadata states for a layer."""
        rank = self.ranks.find(names)
        return self.rank if rank is None else rank


class LayerPatterns:
    """Numbers for layers, as PEFT writes them: the first pattern that matches the end of a layer's name counts.

    A pattern is a name or a simple regular expression: letters, digits, dots, ``^`` before all, ``$`` behind all,
    ``\\d``, ``.*``, ``\\d+``, ``[0-9]+``, and choices in one pair of brackets without a repetition. Others are not
    run: a pattern comes with the file, and some need hours.

    Args:
        numbers: by pattern.

    Raises:
        StatementProblem: a pattern is none that is run, or there are too many of those that are no names.
    """

    _LITERAL = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?")
    _SIMPLE = re.compile(r"\^?(?:[\w-]|\\?\.(?!\*)|\\d\+?|\[0-9\]\+?|\.\*|\((?:\?:)?(?:[\w-]|\\?\.|\|)+\))+\$?")
    # Together they bound the steps for 1,660 layers to 2 s with the worst of patterns, and to 20 ms with usual ones
    _MOST_ANY, _MOST_REPEATS, _MOST_EXPRESSIONS, _LONGEST = 1, 3, 16, 200

    def __init__(self, numbers: Mapping[str, float]) -> None:
        self._names: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        for index, (pattern, number) in enumerate(numbers.items()):
            if self._LITERAL.fullmatch(pattern):
                name = pattern.removesuffix("$").replace("\\.", ".")
                self._names.setdefault(name, (index, number))
            else:
                self._expressions.append((index, self._compiled(pattern), number))
        if len(self._expressions) > self._MOST_EXPRESSIONS:
            raise StatementProblem(f"has {len(self._expressions)} regular expressions for layers in its metadata")

    def __bool__(self) -> bool:
        return bool(self._names or self._expressions)

    def find(self, names: Sequence[str]) -> float | None:
        """The number of the first pattern that matches one of the names."""
        hits = [self._names[end] for name in names for end in _ends(name) if end in self._names] if self._names else []
        hits += [
            (index, number) for index, pattern, number in self._expressions if any(pattern.match(n) for n in names)
        ]
        return min(hits, key=lambda hit: hit[0])[1] if hits else None

    @classmethod
    def _compiled(cls, pattern: str) -> re.Pattern[str]:
        middle = pattern.removeprefix("^").removesuffix("$")
        begins, ends = middle.startswith(".*"), middle.endswith(".*")
        middle = middle.removeprefix(".*").removesuffix(".*")
        known = len(pattern) <= cls._LONGEST and cls._SIMPLE.fullmatch(pattern)
        if not known or middle.count("*") > cls._MOST_ANY or middle.count("+") > cls._MOST_REPEATS:
            raise StatementProblem(f"has a pattern for layers in its metadata that is not supported ({pattern[:80]})")
        start = ".*" if begins else "" if pattern.startswith("^") else r"(?:.*\.)?"
        return re.compile(f"{start}(?:{middle}){'' if ends else '$'}")


def _ends(name: str) -> Iterator[str]:
    """The name as a whole, anchored and not, and what follows each of its dots."""
    yield f"^{name}"
    yield name
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)


@dataclass
class _Found:
    """What was found so far; the first entry that says something counts, another number beside it is a problem."""

    numbers: dict[str, float] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    patterns: dict[str, LayerPatterns] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def parse(self, name: str, text: str, needed: bool) -> Any:
        """A JSON entry; None where it is none."""
        if text.strip().lower() in _NOTHING:
            return None
        try:
            if len(text) > _LONGEST_JSON:
                raise ValueError
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if needed and not isinstance(value, (dict, list)):
            self.problems.append(f"has damaged metadata: {name} is not a JSON object")
        return value

    def take_object(self, source: str, stated: Mapping[str, Any]) -> None:
        groups = _groups(stated)
        own = [group for group in groups if group in _OWN | _OWN_TOO]
        others = [group for group in groups if group not in own and not other_part(f"{group}.")]
        if not own and len(others) == 1:
            own = others  # an adapter's own name
        elif not own and others:
            names = ", ".join(sorted(others)[:3])
            self.problems.append(f"states numbers for components of unknown names in {source}: {names}")
        for group in own:
            for name, value in groups[group].items():
                self.take(source, name, value)

    def take_plain(self, metadata: Mapping[str, str]) -> None:
        for name, value in metadata.items():
            component, _, last = name.rpartition(".")
            if component.lower() in _OWN | _OWN_TOO and (known := _field(last)):
                pattern = known.endswith("_pattern")
                self.take(name, last, (self.parse(name, value, needed=True) or {}) if pattern else value)

    def take(self, source: str, name: str, value: Any) -> None:
        """One field of an entry."""
        known = _field(name)
        if known is None:
            return
        try:
            if known.endswith("_pattern"):
                self._take_pattern(source, name, known, value)
            elif known in ("rslora", "dora"):
                self.switches[known] = self.switches.get(known, False) or _switch(name, value)
            elif (number := _number(name, value, whole=known == "rank", kohya=source.startswith("ss_"))) is not None:
                self._take_number(source, known, number)
        except StatementProblem as problem:
            self.problems.append(f"{problem} in {source}" if source != name else str(problem))

    def _take_number(self, source: str, known: str, number: float) -> None:
        before = self.numbers.setdefault(known, number)
        first = self.sources.setdefault(known, source)
        if known == "alpha" and before != number:
            raise StatementProblem(f"states two alphas: {before:g} in {first} and {number:g}")

    def _take_pattern(self, source: str, name: str, known: str, value: Any) -> None:
        if value is None or value == "":
            return
        if not isinstance(value, dict):
            raise StatementProblem(f"has metadata that cannot be used: {name} is no object")
        numbers = {
            pattern: _number(f"{name} of {pattern[:80]}", n, known == "rank_pattern") for pattern, n in value.items()
        }
        found = LayerPatterns({pattern: number for pattern, number in numbers.items() if number is not None})
        if found and known not in self.patterns:
            self.patterns[known] = found
            self.sources[known] = source


def _as_fields(value: Any) -> Mapping[str, Any]:
    """An object, also from the list of ``name=value`` that a command line had."""
    if isinstance(value, list):
        pairs = (text.partition("=") for text in value if isinstance(text, str))
        return {name.strip(): stated for name, _, stated in pairs}
    return value if isinstance(value, dict) else {}


def _may_mark(name: str, text: str) -> bool:
    """Whether a JSON entry that is none of the known ones may say that the file is an IC-LoRA."""
    looked_at = f"{name} {text[:_LONGEST_JSON]}".lower()
    return text[:1] in "{[" and any(mark in looked_at for mark in _MARKS)


def _is_object(name: str, text: str) -> bool:
    # The base model's description, which some tools copy into a LoRA, has the same name as PEFT's
    return name.lower() in _OBJECTS and (name.lower() != "config" or "lora_alpha" in text)


def _groups(stated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fields by component: ``transformer.r`` and ``{"transformer": {"r": ...}}`` mean the same."""
    groups: dict[str, dict[str, Any]] = {}
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", stated)]
    for component, fields in waiting:
        for name, value in fields.items():
            inner, _, last = name.rpartition(".")
            path = ".".join(part for part in (component, inner) if part)
            if _field(last):
                groups.setdefault(path.lower(), {})[last] = value
            elif isinstance(value, dict) and component.count(".") < _DEEPEST and not name.endswith("_pattern"):
                waiting.append((".".join(part for part in (component, name) if part), value))
    return groups


def _field(name: str) -> str | None:
    return _FIELDS.get(name.lower().removeprefix("ss_"))


def _number(name: str, value: Any, whole: bool, kohya: bool = False) -> float | None:
    """A positive number, or None for none; kohya's trainers mean the rank by an alpha of 0."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if kohya and number == 0 and not whole:
        return None
    if not 0 < number <= _LARGEST_NUMBER or (whole and number != int(number)):
        shown = plain(value if isinstance(value, (str, bool, float, int)) else type(value).__name__, 40)
        wanted = "a whole number from 1" if whole else "a positive number"
        raise StatementProblem(f"has metadata that cannot be used: {name} is {shown}, not {wanted}")
    return number


def _switch(name: str, value: Any) -> bool:
    text = "" if value is None else str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else "?"
    if text not in _SWITCHES:
        raise StatementProblem(f"has metadata that cannot be used: {name} is {plain(text, 40)}, not true or false")
    return _SWITCHES[text]


def _trainer(metadata: Mapping[str, str]) -> str:
    for name in _TRAINERS:
        text = metadata.get(name, "").strip()
        if not text or text.lower() in _NOTHING:
            continue
        if text.startswith("{") and len(text) < 1000:
            try:
                text = str(json.loads(text).get("name", ""))
            except (ValueError, RecursionError):
                continue
        return plain({"ot_revision": "OneTrainer"}.get(name, text), LONGEST_LINE)
    return "diffusers or PEFT" if "lora_adapter_metadata" in metadata else ""


def _reference(metadata: Mapping[str, str], objects: Mapping[str, Any]) -> str:
    """The entry that marks an IC-LoRA, wherever it stands, or ""."""
    plain_entries: dict[str, Any] = {name: value for name, value in metadata.items() if name not in objects}
    waiting: list[tuple[str, Any, int]] = [("", {**plain_entries, **objects}, 0)]
    for path, value, depth in waiting:
        if isinstance(value, dict) and depth < _DEEPEST:
            waiting += [(f"{path}.{name}" if path else str(name), inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list) and depth < _DEEPEST:
            waiting += [
                (f"{path}.{text.partition('=')[0]}", text.partition("=")[2], depth + 1)
                for text in value
                if isinstance(text, str) and "=" in text
            ]
            waiting += [(path, inner, depth + 1) for inner in value if isinstance(inner, dict)]
        elif _marks_reference(path.lower(), value):
            return plain(path, LONGEST_LINE)
    return ""


def _marks_reference(path: str, value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, (str, bool, int, float)) and len(str(value)) < 100 else ""
    if not text or not _SWITCHES.get(text, True):
        return False
    if _REFERENCE_KEY.search(path.rpartition(".")[2]):
        return True
    return _STRATEGY_KEY.search(path) is not None and text.replace("-", "_") in _REFERENCE_STRATEGIES
