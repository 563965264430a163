"""``ltx2 bench`` where there is no GPU: what it refuses, and the synthetic models that it measures."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ltx2_two_stage.benchmarks import command, load
from ltx2_two_stage.benchmarks.synthetic_models import SyntheticModels
from ltx2_two_stage.cli import main
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from ltx2_two_stage.ltx2_core.models.scaled_linear import ScaledLinear
from ltx2_two_stage.ltx2_core.types import Component


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["modes", "--modes", "resident,fast"], "modes = 'fast': is no device mode"),
        (["modes", "--caps", "60,much"], "caps = '60,much': must be numbers of GB"),
        (["modes", "--caps", "60,-3"], "caps = '60,-3': must be numbers of GB above 0"),
        (["modes", "--sizes", "768x512x121"], "sizes = '768x512x121': must be WxH"),
        (["modes", "--sizes", "768"], "sizes = '768': must be WxH"),
        (["modes", "--sizes", "100x100"], "width = 100: must be a multiple of 64"),
        (["modes", "--frames", "32"], "frames = 32: must be 8 * n + 1"),
        (["modes", "--modes", ""], "modes = '': names none"),
        (["modes", "--precision", "fp4"], "invalid choice: 'fp4'"),
        (["modes", "--recipe", "fast"], "invalid choice: 'fast'"),
        (["load"], "the following arguments are required: --file"),
        (["load", "--file", "nowhere/x"], "file = 'nowhere/x': lies in a folder that does not exist"),
        ([], "required: BENCHMARK"),
        (["dit", "--shapes", "A1,F"], "shapes = 'F': is not known"),
        (["dit", "--shapes", ""], "shapes = '': is not known"),
        (["dit", "--precision", "bf16,fp4"], "precision = 'fp4': is not known"),
        (["dit", "--kernels", "fast"], "kernels = 'fast': is not known"),
        (["dit", "--repeat", "0"], "repeat = 0: must be 1 or more"),
        (["decode", "--parts", "text,picture"], "parts = 'picture': is not known"),
        (["decode", "--sizes", "768x500"], "height = 500: must be a multiple of 64"),
        (["decode", "--sizes", "768"], "sizes = '768': must be WxH"),
        (["e2e", "--sizes", "768x500"], "height = 500: must be a multiple of 64"),
        (["e2e", "--frames", "120"], "frames = 120: must be 8 * n + 1"),
        (["e2e", "--compare", "bf16"], "compare = 'bf16': is the precision that it is compared with"),
        (["e2e", "--steps", "0"], "steps = 0: must be 1 or more"),
        (["e2e", "--mode", "fast"], "invalid choice: 'fast'"),
        (["e2e", "--repeat", "0"], "repeat = 0: must be 1 or more"),
        (["peers", "--contestants", "ours,comfy"], "contestants = 'comfy': is not known"),
        (["peers", "--shapes", "Z"], "shapes = 'Z': is not known"),
        (["dit", "--limit-s", "-1"], "limit-s = -1.0: must be above 0"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out.json")] if arguments else []
    assert main(["bench", *arguments, *out]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", ["modes", "load", "ceilings", "dit", "decode", "e2e", "peers"])
def test_without_a_gpu(benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "file")] if benchmark == "load" else []
    assert main(["bench", benchmark, "--out", str(tmp_path / "out.json"), *file]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "modes", "--out", str(tmp_path / "none" / "out.json")]) == 2
    assert "a folder that does not exist" in capsys.readouterr().err


def test_figures_replace_older_ones_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")

    def work(save: command.Save) -> None:
        with pytest.raises(TypeError):
            save({"figure": object()})
        assert out.read_text() == "old"
        save({"figure": 1})

    monkeypatch.setattr(command, "_require_gpu", lambda: None)
    ceilings = command.BENCHMARKS["ceilings"]._replace(work=lambda _: work)
    monkeypatch.setitem(command.BENCHMARKS, "ceilings", ceilings)
    assert main(["bench", "ceilings", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == {"figure": 1} and list(tmp_path.iterdir()) == [out]
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["benchmarks", "benchmarks.command"])
@pytest.mark.parametrize("words", ["", "--help", "dit --out out.json", "-v e2e --steps=2", "-- modes"])
def test_where_benchmarks_are_not_shipped(
    words: str, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("ltx2_two_stage.benchmarks")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, f"ltx2_two_stage.{missing}", None)
    assert main(["bench", *words.split()]) == 2
    assert "Clone the repository, run pip install -e . in it" in capsys.readouterr().err


def test_what_a_benchmark_lacks_is_not_called_missing_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ltx2_two_stage.benchmarks.command")
    monkeypatch.setitem(sys.modules, "ltx2_two_stage.benchmarks.options", None)
    with pytest.raises(ModuleNotFoundError, match=r"benchmarks\.options"):
        main(["bench", "ceilings"])


@pytest.mark.parametrize("option", ["--out", "--file"])
def test_a_folder_in_place_of_a_file(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {"--out": str(tmp_path / "out.json"), "--file": str(tmp_path / "file"), option: str(tmp_path)}
    assert main(["bench", "load", *(word for pair in paths.items() for word in pair)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_there_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"my checkpoint")
    assert main(["bench", "load", "--out", str(tmp_path / "out.json"), "--file", str(path)]) == 2
    assert "is there already, and is never replaced" in capsys.readouterr().err
    with pytest.raises(FileExistsError):
        load._write(path, {"a.weight": (2, 2)})
    assert path.read_bytes() == b"my checkpoint"


def test_a_disk_without_room_for_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.shutil, "disk_usage", lambda _: SimpleNamespace(free=37_000_000_000))
    with pytest.raises(SettingError, match="needs 38 GB of the disk, and 37 GB are free"):
        load.check_room("2.3", tmp_path / "new.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_spaces_and_a_last_comma_between_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out.json")]
    assert main(["bench", "dit", "--shapes", "A1, B,", "--precision", "bf16, fp8", *out]) == 2
    assert main(["bench", "decode", "--sizes", "768x512, 1536x1024,", *out]) == 2
    assert capsys.readouterr().err.count("needs an NVIDIA GPU") == 2


def test_synthetic_weights_are_the_same_whenever_they_are_made() -> None:
    name = "transformer_blocks.0.audio_attn1.to_q.weight"
    models = SyntheticModels("2.3")
    models.transformer = replace(models.transformer, num_layers=1)
    shape = models.skeleton(Component.TRANSFORMER).get_parameter(name).shape
    alone, among = {name: torch.empty(shape)}, {"other.weight": torch.empty(8, 8), name: torch.empty(shape)}
    alone, among = ({n: t.bfloat16() for n, t in tensors.items()} for tensors in (alone, among))
    models.fill(Component.TRANSFORMER, alone)
    models.fill(Component.TRANSFORMER, among)
    assert torch.equal(alone[name], among[name])
    # Sums of products of such weights stay of the order of one
    assert abs(float(alone[name].float().std()) * shape[-1] ** 0.5 - 0.8) < 0.01


def test_fp8_weights_are_those_of_bfloat16_quantised() -> None:
    """Weights and scales may be asked for apart, as they are where groups of tensors are loaded."""
    models = SyntheticModels("2.3", tiny=True)
    name = "transformer_blocks.0.attn1.to_q.weight"
    plain = torch.empty_like(models.skeleton(Component.TRANSFORMER).get_parameter(name), device="cpu")
    weight, scale = torch.empty_like(plain, dtype=torch.float8_e4m3fn), torch.empty(len(plain))
    models.fill(Component.TRANSFORMER, {name: plain})
    models.fill(Component.TRANSFORMER, {f"{name}_scale": scale})
    models.fill(Component.TRANSFORMER, {name: weight})
    # Three bits of mantissa: half of a sixteenth, relative to each number
    torch.testing.assert_close(weight.float() * scale[:, None], plain.float(), rtol=1 / 16, atol=1e-3)
    assert torch.equal(weight.float().abs().amax(1), torch.full((len(plain),), 448.0))


def test_layers_in_fp8() -> None:
    """14 of a block's 34 layers, those of the video stream and what the streams exchange, in 46 of 48 blocks."""
    models = SyntheticModels("2.3", precision="fp8")
    transformer = models.skeleton(Component.TRANSFORMER)
    scaled = [path for path, layer in transformer.named_modules() if isinstance(layer, ScaledLinear)]
    assert len(scaled) == 14 * 46
    assert not any("gate" in path or path.split(".")[1] in ("0", "47") for path in scaled)
    assert 24e9 < models.component_bytes(Component.TRANSFORMER) < 24.2e9


def test_the_file_that_is_loaded_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    shapes = {"a.weight": (300, 7), "b": (5,)}
    assert load._write(path, shapes) == 2 * (2100 + 5)
    file = SafetensorsFile.open(path, "checkpoint")
    assert {name: info.shape for name, info in file.tensors.items()} == shapes
    assert file.read(["b"])["b"].dtype is torch.bfloat16
    load._read(path)
    if hasattr(os, "posix_fadvise"):
        load._forget(path)
