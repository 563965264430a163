"""Input that cannot work: each case exits with 2, names setting and value, and stops before any weight is read."""

from __future__ import annotations

import importlib.util
import json
import shutil
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from ltx2_two_stage.ltx2_core.loading.component_source import ComponentSource
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.media.mp4 import Mp4Writer
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class World:
    """Good files of both generations, and a folder for broken ones."""

    new: TinyFiles
    old: TinyFiles
    folder: Path

    def options(self, **changes: object) -> list[str]:
        """A command line that works, with changes; None leaves an option out."""
        options: dict[str, object] = {
            "checkpoint": self.new.checkpoint,
            "gemma": self.new.gemma,
            "upsampler": self.new.upsampler,
            "distilled_lora": self.new.distilled_lora,
            "prompt": "waves",
            "width": 128,
            "height": 128,
            "frames": 9,
            "steps": 2,
            "device": "cpu",
            "output": self.folder / "clip.mp4",
            **changes,
        }
        named = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
        return ["generate", *(str(word) for pair in named for word in pair)]

    def changed(self, source: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        """A copy of a safetensors file with other tensors and the same metadata."""
        tensors = load_file(source)
        change(tensors)
        with safe_open(source, "pt") as opened:
            metadata = opened.metadata()
        target = self.folder / name
        save_file(tensors, target, metadata)
        return target


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bad_input")
    return World(write_tiny(folder / "2.3"), write_tiny(folder / "2.0", "2.0"), folder)


@pytest.fixture(autouse=True)
def no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: object, *arguments: object, **options: object) -> None:
        raise AssertionError(f"weights of a {type(self).__name__} were read before the input was checked")

    monkeypatch.setattr(SafetensorsFile, "read", read)
    monkeypatch.setattr(ComponentSource, "fill", read)
    monkeypatch.setattr(GemmaSource, "load_model", read)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the user gets."""
    assert cli.main([*arguments, "--quiet"]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("ltx2: error: ") and written.err.count("\n") == 1, written.err
    return written.err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 160}, ["width = 160", "64", "128 or 192"]),
        ({"height": 96, "recipe": "two-stage"}, ["height = 96", "64"]),
        ({"width": 100, "recipe": "one-stage"}, ["width = 100", "32", "96 or 128"]),
        ({"width": 0}, ["width = 0", "64"]),
        ({"frames": 10}, ["frames = 10", "8 * n + 1", "9 or 17"]),
        ({"frames": 0}, ["frames = 0", "8 * n + 1"]),
        ({"fps": 0}, ["fps = 0", "positive"]),
        ({"fps": -24}, ["fps = -24", "positive"]),
        ({"steps": 0}, ["steps = 0", "at least 1"]),
        ({"steps": 4, "recipe": "distilled"}, ["steps = 4", "8 fixed steps"]),
        ({"steps": 4, "sigmas": "1,0.5,0"}, ["steps = 4", "sigmas are given", "2 fixed steps"]),
        ({"steps": None, "sigmas": "1"}, ["sigmas = [1.0]", "at least two"]),
        ({"steps": None, "sigmas": "0.9,0.5,0"}, ["sigmas = [0.9, 0.5, 0.0]", "begin at 1"]),
        ({"steps": None, "sigmas": "1,0.5,0.5,0"}, ["sigmas = [1.0, 0.5, 0.5, 0.0]", "must fall"]),
        ({"steps": None, "sigmas": "1,1e-60,0"}, ["sigmas = [1.0, 1e-60, 0.0]", "must fall"]),
        ({"steps": None, "sigmas": "1,0.5"}, ["sigmas = [1.0, 0.5]", "end in 0"]),
        ({"refine_sigmas": "1.5,0.5,0"}, ["refine-sigmas = [1.5, 0.5, 0.0]", "1 or below"]),
        ({"refine_sigmas": "0.9,0", "recipe": "one-stage"}, ["refine-sigmas = [0.9, 0.0]", "no stage 2"]),
        ({"refine_sigmas": "0.9,0.001,0", "recipe": "hq"}, ["refine-sigmas", "res_2s", "0.0011"]),
        ({"schedule_tokens": 60_000, "recipe": "hq"}, ["schedule-tokens = 60000", "30000 at most"]),
        ({"schedule_tokens": -1}, ["schedule-tokens = -1", "between 1 and"]),
        ({"schedule_tokens": 10**9}, ["schedule-tokens = 1000000000", "between 1 and"]),
        ({"schedule_tokens": 4096, "steps": None, "recipe": "distilled"}, ["schedule-tokens = 4096", "fixed steps"]),
        ({"seed": -1}, ["seed = -1", "2^64"]),
        ({"prompt": "a \udcff"}, ["prompt", "no text"]),
        ({"frames": 1, "fps": 60}, ["fps = 60", "too short"]),
        ({"frames": 9, "fps": 0.01}, ["fps = 0.01", "longest"]),
        ({"image_crf": 52}, ["image-crf = 52", "51"]),
        ({"video_guidance": "blocks=4711"}, ["video-guidance blocks", "4711"]),
        ({"video_guidance": "blocks=28"}, ["video-guidance blocks = 28", "0 to 2"]),
        ({"video_guidance": "stg=0,blocks=1"}, ["video-guidance blocks = [1]", "STG scale is 0"]),
        ({"audio_guidance": "stg=1", "steps": None, "recipe": "distilled"}, ["audio-guidance blocks", "one block"]),
        ({"audio_guidance": "blocks=1", "recipe": "hq"}, ["audio-guidance blocks = [1]", "STG scale is 0"]),
        ({"video_guidance": "stg=1,blocks=1", "recipe": "hq"}, ["video-guidance stg = 1.0", "hq", "without STG"]),
        ({"audio_guidance": "skip=-1"}, ["audio-guidance skip", "-1"]),
        ({"audio_source": "stage2", "recipe": "one-stage"}, ["audio-source", "stage2"]),
        ({"audio_source": "input"}, ["audio-source = 'input'", "without a given sound"]),
        ({"distilled_strength": "0,1", "recipe": "one-stage"}, ["distilled-strength", "1.0", "no stage 2"]),
        ({"upsampler": None}, ["upsampler", "two-stage"]),
        ({"distilled_lora": None}, ["distilled-lora", "two-stage"]),
        ({"gemma": None}, ["gemma"]),
        ({"output": "clip.avi"}, ["output = 'clip.avi'", ".mp4"]),
        ({"output": "/proc/clip.mp4"}, ["output = '/proc/clip.mp4'"]),
        ({"output": "no/such/folder/clip.mp4"}, ["output = 'no/such/folder/clip.mp4'", "does not exist"]),
        ({"report": "no/such/folder/r.json"}, ["report", "no/such/folder"]),
        ({"save_latents": "/proc/l.safetensors"}, ["save-latents", "/proc/l.safetensors"]),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings(
    world: World, changes: dict[str, object], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(world.options(**changes), capsys)
    for part in named:
        assert part in error


@pytest.mark.parametrize(("variable", "value"), [("LTX2_KERNELS", "fast"), ("LTX2_ATTENTION", "faster")])
def test_variables(
    world: World, variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    error = refused(world.options(), capsys)
    assert f"{variable} = '{value}'" in error and "Choose from: auto" in error


@pytest.mark.parametrize(
    "option", ["checkpoint", "gemma", "upsampler", "distilled_lora", "video_vae", "audio_vae", "text_projection"]
)
def test_missing_files(world: World, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.folder / "nowhere" / "f.safetensors"
    error = refused(world.options(**{option: path}), capsys)
    assert option.replace("_", "-") in error and str(path) in error


@pytest.mark.parametrize(
    "option", ["checkpoint", "gemma", "upsampler", "distilled_lora", "video_vae", "audio_vae", "text_projection"]
)
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_files(world: World, option: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = getattr(world.new, option, world.new.checkpoint)
    good = (source if source.is_file() else source / "model-00001-of-00002.safetensors").read_bytes()
    path = world.folder / f"{option}-{damage}.safetensors"
    path.write_bytes({"truncated": good[: len(good) // 2], "text": b"not tensors at all\n" * 9, "empty": b""}[damage])
    error = refused(world.options(**{option: path}), capsys)
    assert option.replace("_", "-") in error and str(path) in error


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def add(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.ones(3)

    return change


def widen(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    return change


BLOCK = "model.diffusion_model.transformer_blocks.1"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop(f"{BLOCK}.attn1.to_q.weight"), "transformer_blocks.1.attn1.to_q.weight"),
        (add(f"{BLOCK}.attn3.to_q.weight"), "transformer_blocks.1.attn3.to_q.weight"),
        (widen(f"{BLOCK}.attn1.to_q.bias"), "transformer_blocks.1.attn1.to_q.bias"),
        (drop("vae.decoder.conv_out.conv.bias"), "conv_out.conv.bias"),
    ],
    ids=["missing", "unexpected", "another shape", "missing in the VAE"],
)
def test_keys_of_the_checkpoint(
    world: World,
    change: Callable[[dict[str, torch.Tensor]], None],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = world.changed(world.new.checkpoint, "changed.safetensors", change)
    error = refused(world.options(checkpoint=path), capsys)
    assert "checkpoint" in error and named in error


def test_a_checkpoint_of_another_model(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.folder / "unet.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4)}, path)
    error = refused(world.options(checkpoint=path), capsys)
    assert "checkpoint" in error and str(path) in error


@pytest.mark.parametrize("option", ["distilled_lora", "lora"])
def test_a_lora_of_another_generation(world: World, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.old.distilled_lora
    error = refused(world.options(**{option: f"{path}:1" if option == "lora" else path}), capsys)
    assert option.replace("_", "-") in error and str(path) in error


def test_an_upsampler_of_another_kind(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(world.options(upsampler=world.new.checkpoint), capsys)
    assert "upsampler" in error and str(world.new.checkpoint) in error


def test_a_text_encoder_of_another_width(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.folder / "another-gemma"
    shutil.copytree(world.new.gemma, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    text["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    error = refused(world.options(gemma=folder), capsys)
    assert "gemma" in error and str(folder) in error and str(text["hidden_size"]) in error


def test_images(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = world.folder / "good.png", world.folder / "bad.png"
    Image.new("RGB", (64, 48), (200, 30, 90)).save(good)
    bad.write_bytes(good.read_bytes()[:20])
    two = world.folder / "two.png"
    shutil.copy(good, two)
    long = world.folder / "long.png"
    Image.new("RGB", (17000, 8)).save(long)
    for argument, named in (
        (bad, [str(bad), "image"]),
        (world.folder / "none.png", ["none.png", "image"]),
        (f"{good}@9", ["image frame = 9", "0 to 8"]),
        (f"{good}@-10", ["image frame = -10", "0 to 8", "-1 is the last"]),
        (f"{good}@0:1.5", ["image strength = 1.5", "0", "1"]),
        (f"{good}@0:-0.1", ["image strength = -0.1"]),
        (f"{good}@0:nan", ["image strength = nan"]),
        (world.folder, ["image", str(world.folder), "folder"]),
        (long, [str(long), "17000x8", "16384"]),
    ):
        error = refused(world.options(image=argument), capsys)
        for part in named:
            assert part in error
    # As in the official pipelines, two images may be for one frame
    with pytest.raises(AssertionError, match="were read"):
        cli.main([*world.options(image=f"{good}@8"), "--image", f"{two}@last:0.5", "--quiet"])
    # The first revision counts latent frames: two of them here
    error = refused(world.options(image=f"{good}@2", revision="2026-01"), capsys)
    assert "image frame = 2" in error and "counts latent frames" in error and "0 to 1" in error


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """16-bit samples (N, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_sound(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_wav(world.folder / "good.wav", np.full((4000, 1), 99))
    silent = world.folder / "silent.mp4"
    with Mp4Writer(silent) as writer:
        writer.open(64, 64, 24, None)
        writer.frames(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
        writer.close()
    text = world.folder / "text.wav"
    text.write_text("no sound at all")
    for argument, named in (
        (silent, [str(silent), "has no audio stream"]),
        (text, [str(text), "no sound that can be read"]),
        (write_wav(world.folder / "empty.wav", np.zeros((0, 2))), ["empty.wav", "without any sound"]),
        (world.folder / "none.wav", ["none.wav", "no such file"]),
        (world.folder, [str(world.folder), "folder"]),
    ):
        error = refused(world.options(audio=argument), capsys)
        assert error.startswith("ltx2: error: audio = ")
        for part in named:
            assert part in error
    changes = {"audio": good, "audio_source": "stage2", "recipe": "one-stage"}
    assert "audio-source = 'stage2'" in refused(world.options(**changes), capsys)
    with pytest.raises(AssertionError, match="were read"):
        cli.main([*world.options(audio=good), "--quiet"])


def test_user_loras(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def stranger(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("diffusion_model.", "diffusion_model.unet.")] = tensors.pop(name)

    strange = world.changed(world.new.lora, "stranger.safetensors", stranger)
    error = refused(world.options(lora=f"{strange}:1"), capsys)
    assert str(strange) in error and "0 of its 130 targets" in error and "unet." in error

    ic_lora = world.folder / "ic-lora.safetensors"
    alone = world.options(lora=f"{world.new.lora}:0.5:2", recipe="one-stage")
    assert "lora stage = 2: the one-stage recipe has no stage 2" in refused(alone, capsys)
    save_file(load_file(world.new.lora), ic_lora, {"reference_downscale_factor": "2"})
    error = refused(world.options(lora=f"{ic_lora}:1:2"), capsys)
    assert str(ic_lora) in error and "is an IC-LoRA" in error and "not supported" in error
    for strength in ("nan", "inf", "-inf"):
        assert "not a number" in refused(world.options(lora=f"{world.new.lora}:{strength}"), capsys)


def test_the_working_command_line_gets_past_every_check(world: World) -> None:
    # Else all of the above could fail for a reason of their own.
    with pytest.raises(AssertionError, match="were read"):
        cli.main([*world.options(), "--quiet"])
    assert not (world.folder / "clip.mp4").exists()


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "fuzz" / "options.py"
    spec = importlib.util.spec_from_file_location("fuzz_options", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def each(fuzz: ModuleType, world: World) -> Iterator[Any]:
    with fuzz.bench("ltx2_two_stage", world.folder, world.new, seconds=30.0) as made:
        yield made


def test_every_option_takes_what_nobody_means(
    fuzz: ModuleType, each: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = [
        (option, value) for option in fuzz.OPTIONS for value in fuzz.values(option, 0 if option in fuzz.SLOW else 4)
    ]
    problems = {one: problem for one in tried if (problem := each.problem(*one)) is not None}
    assert problems == {}
    assert len(tried) > 120 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", "9" * 400),
        ("width", "18446744073709551616"),
        ("fps", "1e-320"),
        ("negative-prompt", "half \ud83d"),
        ("prompt", "a\0b"),
        ("image", "i.png@0:nan"),
        ("output", "--"),
        ("seed", "18446744073709551616"),
        ("lora", "\udcff.safetensors:1"),
        ("sigmas", ",".join(["1"] * 3000) + ",0"),
        ("video-guidance", "cfg=1e308"),
        ("checkpoint", "a" * 70_000),
    ],
    ids=lambda value: value[:20].encode("ascii", "replace").decode(),
)
def test_of_those_these(each: Any, option: str, value: str) -> None:
    assert each.problem(option, value) is None
