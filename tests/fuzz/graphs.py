"""Workflows in API format that nobody means: each is refused with words, or runs.

``tests/host/test_hostile_graphs.py`` queues a few of them in a real ComfyUI; all of them:
``python tests/fuzz/graphs.py [how many]``.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANY, FEW = 500, 32
LONGEST_SECONDS = 2.0
VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 64, 96, 768.5, 768.0, 2**31, 2**63, 2**64, -(2**64), 10**30, 10**400, 1e308, 1e-320, 0.5),
    *(float("nan"), float("inf"), float("-inf"), True, False, None, {}, [], [1], {"a": 1}, {"__value__": [1, 2]}),
    *(
        {"__value__": None},
        {"__value__": {}},
        ["loader", 99],
        ["nobody", 0],
        ["recipe", 0],
        ["loader", 0],
        [None, None],
    ),
    *("", " ", "abc", "768", "1e999", "nan", "None", "\0", "\ud83d", "half \udcff", "\x1b[31mred", "\u202eevil"),
    *("<img src=x onerror=alert(1)>", "x" * 100_000, "9" * 5000, "../../../etc/passwd", "/dev/zero", "a\nb", "28,,29"),
    *(
        "-1",
        "none",
        "1,0.5,0",
        "1,nan,0",
        ",".join(["1"] * 3000),
        "preset",
        "from latent",
        "stage 2",
        "hq",
        "distilled",
    ),
)


def hostile(base: Mapping[str, Any], count: int, seed: int = 13) -> Iterator[tuple[str, dict[str, Any]]]:
    """So many changes of a workflow, always the same ones, each with the words for what was changed."""
    draw = random.Random(seed)
    ours = sorted(name for name, node in base.items() if node["class_type"].startswith("LTX2"))
    for _ in range(count):
        graph, said = copy.deepcopy(dict(base)), []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            name = draw.choice(ours)
            inputs = graph[name]["inputs"]
            key, value = draw.choice(sorted(inputs)), draw.choice(VALUES)
            inputs[key] = value
            said.append(f"{name}.{key} = {json.dumps(value)[:60]}")
        yield "; ".join(said), graph


def problem_of(entry: Mapping[str, Any]) -> str | None:
    """What is wrong with how a run ended, by its entry in the history; None where it succeeded or failed with words."""
    if entry["status"]["status_str"] == "success":
        return None
    details = dict(entry["status"]["messages"]).get("execution_error", {})
    kind, text = str(details.get("exception_type")), str(details.get("exception_message"))
    if details.get("node_type", "").startswith("LTX2") and not kind.startswith("ltx2."):
        return f"{kind}: {text[:400]}\n{''.join(details.get('traceback', []))[-600:]}"
    return unclear(text)


def problem_of_refusal(answer: Any) -> str | None:
    """What is wrong with how a workflow was refused."""
    if not isinstance(answer, dict):
        return None
    for node in (answer.get("node_errors") or {}).values():
        for error in node.get("errors", []):
            info = error.get("extra_info", {})
            trace = "".join(info.get("traceback", []))
            if "ltx2-two-stage" in trace or "/nodes/guard.py" in trace:
                return f"{info.get('exception_type')}: {error.get('details', '')[:300]}\n{trace[-600:]}"
            if error.get("type") == "custom_validation_failed" and (found := unclear(error["details"])):
                return found
    return None


def unclear(text: str) -> str | None:
    hostile_signs = [sign for sign in ("<img", "\x1b", "\u202e", "\0") if sign in text]
    if hostile_signs or len(text) > 6000:
        return f"{len(text)} characters with {hostile_signs}: {text[:300]!r}"
    return None


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else str(MANY)
    test = Path(__file__).parents[1] / "host" / "test_hostile_graphs.py"
    command = [sys.executable, "-m", "pytest", "-q", "-s", str(test)]
    raise SystemExit(subprocess.run(command, env={**os.environ, "HOSTILE_GRAPHS": wanted}, check=False).returncode)
