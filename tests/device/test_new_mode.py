"""A new device mode is one file and its line in the registry: all else runs it, plans it and names it unchanged."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.assembly import check_device_mode
from ltx2_two_stage.device_manager import modes
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.device_manager.modes import MODES, UnknownMode, mode_names, mode_tooltip, requested_mode
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.policy import DoesNotFit, choose, safety_margin
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.terminal.arguments import build_parser
from switching import CPU, Apart, Source, assert_clean, oracle, random_sequence, run
from test_policy import facts, gb
from toy_mode import ONE_BY_ONE

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("nodes", "terminal", "ltx2_core", "device_manager", "benchmarks")
STREAMS = {"on one device": lambda: Streams(CPU), "host and device apart": Apart}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "MODES", (*MODES, ONE_BY_ONE))


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
def test_it_gives_the_bits_of_merged_weights_and_holds_one_layer(streams: Callable[[], Streams]) -> None:
    source, held = Source(), list[int]()
    switchable = source.switchable(ONE_BY_ONE, streams())
    for strength in (1.0, 0.5, 0.0, 1.0):
        assert torch.equal(run(switchable, strength, then=0.5), oracle(source, strength))
    with torch.inference_mode(), switchable.use({"distilled": 1.0}) as module:
        for layer in module.layers:
            layer.register_forward_pre_hook(lambda *given: held.append(switchable.device_bytes["passing"]))
        module(torch.zeros(1, 8))
    # What is outside the layers, and one of four layers
    assert len(held) == 4 and 0 < max(held) < switchable.host_bytes["base"] / 2
    assert not switchable.device_bytes
    assert source.reads == 1
    assert_clean(switchable, source)


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
def test_base_weights_survive_random_sequences(streams: Callable[[], Streams]) -> None:
    random_sequence(ONE_BY_ONE, 0, streams())


@pytest.mark.parametrize("other", MODES, ids=str)
def test_the_manager_takes_it_and_leaves_it(other: Mode) -> None:
    source = Source()
    manager = DeviceManager(CPU, other, "a test", ("dit", source.switchable(other).base.spec), {})

    def computed() -> torch.Tensor:
        with torch.inference_mode(), manager.use("dit", {"distilled": 1.0}) as module:
            return module(torch.linspace(-1, 1, 24).view(3, 8)).clone()  # type: ignore[no-any-return]

    before = computed()
    manager.change_mode(ONE_BY_ONE, "by hand")
    assert (manager.mode, manager.mode_reason) == ("one-by-one", "by hand")
    assert torch.equal(computed(), oracle(source, 1.0)) and manager.device_bytes == 0
    assert manager.status()["host"]["base"] > 0 and not manager.fall_back("no smaller one")
    manager.change_mode(other, "back")
    assert torch.equal(computed(), before)


def test_auto_takes_it_where_no_other_mode_fits_and_says_what_it_does() -> None:
    given = facts(24)
    decision = choose(given)
    assert decision.mode is ONE_BY_ONE
    assert decision.reason.startswith("auto chose one-by-one: blocks come to the GPU one by one, the text encoder")
    assert decision.planned_peak_bytes + safety_margin(given) <= given.free_vram
    assert choose(facts(60)).mode is not ONE_BY_ONE, "a faster one fits"
    assert "one-by-one was requested" in choose(facts(60), ONE_BY_ONE).reason


def test_errors_count_it_among_the_modes() -> None:
    with pytest.raises(DoesNotFit, match=r"one-by-one 6\.8 GB GPU and 69\.1 GB host") as nothing:
        choose(facts(6))
    assert nothing.value.needed[ONE_BY_ONE] < gb(7)
    with pytest.raises(UnknownMode, match="original, one-by-one"):
        requested_mode("fast", {})
    with pytest.raises(SettingError, match="one-by-one"):
        check_device_mode("fast")


def test_settings_and_tooltips_offer_it() -> None:
    assert requested_mode("one-by-one", {}) == (ONE_BY_ONE, "set by the node or --device-mode")
    assert mode_names()[-1] == "one-by-one"
    assert mode_tooltip().endswith(" one-by-one: blocks one by one (9 GB).")
    given = "generate --checkpoint c --gemma g --prompt p --output o.mp4 --device-mode one-by-one"
    assert build_parser().parse_args(given.split()).device_mode == "one-by-one"


def named(path: Path) -> Iterator[str]:
    """Every mode that a file names: its constant, its name as a string, or its file."""
    constants = {mode.name.upper().replace("-", "_"): mode.name for mode in MODES}
    names, text = set(constants.values()), path.read_text(encoding="utf-8")
    if not any(name in text.lower() for name in names):
        return  # parsing all files takes most of a second
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            yield node.value
        elif isinstance(node, ast.Name) and node.id in constants:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in constants:
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ({alias.name for alias in node.names} | set((node.module or "").split("."))) & {
                *constants,
                *(constant.lower() for constant in constants),
            }


def test_no_file_outside_the_room_names_a_mode() -> None:
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    outside = [path for path in files if ROOT / "device_manager" / "modes" not in path.parents]
    assert len(outside) > 100
    found = {path.relative_to(ROOT).as_posix(): set(named(path)) for path in outside}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_walk_finds_a_mode_by_each_of_its_names(tmp_path: Path) -> None:
    text = (
        'from .modes import ORIGINAL\nfrom .modes.resident import x\nmode is modes.SNAPSHOT\nmode == "snapshot-low"\n'
    )
    path = tmp_path / "code.py"
    path.write_text(text)
    assert set(named(path)) == {"ORIGINAL", "resident", "SNAPSHOT", "snapshot-low"}
