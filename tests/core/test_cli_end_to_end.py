"""Whole runs of the command line on tiny files: what is written, what it holds, and that nothing half-written stays."""

from __future__ import annotations

import json
import os
import sys
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.docs.make.templates import TEMPLATES, Node
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.models.audio_vae import AudioVAEConfig
from ltx2_two_stage.ltx2_core.models.video_vae.config import VideoVAEConfig
from PIL import Image
from safetensors.torch import load_file

WIDTH, HEIGHT, FRAMES = 128, 64, 9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), dtype="float32")


def command(tiny: TinyFiles, folder: Path, **changes: object) -> list[str]:
    options: dict[str, object] = {
        "checkpoint": tiny.checkpoint,
        "gemma": tiny.gemma,
        "upsampler": tiny.upsampler,
        "distilled_lora": tiny.distilled_lora,
        "prompt": "waves at a beach",
        "width": WIDTH,
        "height": HEIGHT,
        "frames": FRAMES,
        "steps": 2,
        "device": "cpu",
        "output": folder / "clip.mp4",
        **changes,
    }
    given = {name: value for name, value in options.items() if value is not None}
    words = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items())
    return ["generate", *(word for pair in words for word in pair)]


@dataclass(frozen=True)
class Run:
    folder: Path
    out: str
    err: str

    @property
    def latents(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "latents.safetensors")


def run(tiny: TinyFiles, folder: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> Run:
    folder.mkdir()
    results = {"report": folder / "report.json", "save_latents": folder / "latents.safetensors"}
    status = cli.main(command(tiny, folder, **results, **changes))
    written = capsys.readouterr()
    assert status == 0, written.err
    return Run(folder, written.out, written.err)


def test_a_run_writes_clip_report_and_latents(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(tiny, tmp_path / "a", capsys)
    assert sorted(path.name for path in done.folder.iterdir()) == ["clip.mp4", "latents.safetensors", "report.json"]

    latents = done.latents
    shapes = {name: tuple(tensor.shape) for name, tensor in latents.items()}
    config = SafetensorsFile.open(tiny.checkpoint, "checkpoint").config
    assert config is not None
    cells = (1, VideoVAEConfig.from_metadata(config).latent_channels, 2)
    assert shapes["stage1_video"] == (*cells, HEIGHT // 64, WIDTH // 64)
    assert shapes["upsampled_video"] == shapes["stage2_video"] == (*cells, HEIGHT // 32, WIDTH // 32)
    sound_shape = tuple(AudioVAEConfig.from_metadata(config).geometry.latent(FRAMES / 24))
    assert shapes["stage1_audio"] == shapes["stage2_audio"] == sound_shape
    assert shapes["frames"] == (FRAMES, HEIGHT, WIDTH, 3) and latents["frames"].dtype == torch.uint8
    assert shapes["stage1_sigmas"] == (3,) and latents["stage1_sigmas"][-1] == 0
    assert shapes["video_context"][:2] == shapes["negative_audio_context"][:2] == (1, 1024)
    assert shapes["audio_waveform"][:2] == (1, 2)
    assert latents["stage1_video"].dtype == torch.float32
    assert all(tensor.float().isfinite().all() for tensor in latents.values())
    assert latents["frames"].float().std() > 10, "the picture is flat"
    assert latents["audio_waveform"].std() > 1e-3, "the sound is silent"

    report = json.loads((done.folder / "report.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in report["stages"]] == ["text", "stage_1", "upsample", "stage_2", "decode"]
    assert all(stage["ms"] > 0 and stage["peak_bytes"] > 0 for stage in report["stages"])
    assert (report["recipe"], report["revision"], report["seed"]) == ("two-stage", "newest", 10)
    assert report["mode"] == "original" and report["mode_reason"].startswith("auto")
    assert report["files"]["checkpoint"] == str(tiny.checkpoint) and report["device"] == "cpu"

    with av.open(str(done.folder / "clip.mp4")) as clip:
        (picture,), (sound,) = clip.streams.video, clip.streams.audio
        assert (picture.codec_context.name, sound.codec_context.name) == ("h264", "aac")
        assert (picture.width, picture.height, picture.average_rate) == (WIDTH, HEIGHT, 24)
        assert sum(1 for _ in clip.decode(video=0)) == FRAMES
        settings = json.loads(clip.metadata["ltx2_settings"])
    assert settings["prompt"] == "waves at a beach" and settings["seed"] == 10
    assert settings["checkpoint"] == tiny.checkpoint.name, (
        "folders of the machine do not belong in a file that is shared"
    )

    assert done.out.splitlines()[0] == str(done.folder / "clip.mp4")
    assert "0.38 s" in done.out and all(stage["name"] in done.out for stage in report["stages"])
    assert "stage_2: " in done.err


def test_the_same_command_gives_the_same_latents_and_another_seed_others(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "first.png"
    Image.effect_noise((100, 80), 60).convert("RGB").save(image)
    options = {"image": f"{image}@0:0.8", "lora": f"{tiny.lora}:0.7:1", "video_guidance": "cfg=2,blocks=0/1"}
    first, second = (run(tiny, tmp_path / name, capsys, **options).latents for name in ("a", "b"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name  # same machine, same seed: not one bit may differ
    other = run(tiny, tmp_path / "c", capsys, **options, seed=11).latents
    assert not torch.equal(first["stage1_video"], other["stage1_video"])
    assert torch.equal(first["video_context"], other["video_context"])


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"audio_source": "stage2"}, {"audio_waveform"}),
        ({"distilled_strength": "0,0.5"}, {"stage2_video", "stage2_audio", "frames"}),
        ({"audio_guidance": "cfg=2"}, {"stage1_video", "stage1_audio"}),
        ({"fps": "12"}, {"stage1_video", "stage1_audio"}),
        ({"sampler": "gradient_estimation", "steps": 3}, {"stage1_video", "stage2_video"}),
        ({"steps": None, "sigmas": "1,0.6,0"}, {"stage1_video", "stage1_audio", "stage1_sigmas"}),
        ({"refine_sigmas": "0.9,0.4,0"}, {"stage2_video", "stage2_audio"}),
        ({"schedule_tokens": 0}, {"stage1_video", "stage1_sigmas"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_reaches_what_it_is_for(
    tiny: TinyFiles,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plain: dict[str, torch.Tensor],
    changes: dict[str, object],
    differs: set[str],
) -> None:
    changed = run(tiny, tmp_path / "a", capsys, **changes).latents
    for name in differs:
        same = plain[name].shape == changed[name].shape and torch.equal(plain[name], changed[name])
        assert not same, name
    if differs == {"audio_waveform"}:
        assert torch.equal(plain["frames"], changed["frames"])
    assert torch.equal(plain["video_context"], changed["video_context"])


@pytest.fixture(scope="module")
def plain(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    assert cli.main([*command(tiny, folder, save_latents=folder / "latents.safetensors"), "--quiet"]) == 0
    return load_file(folder / "latents.safetensors")


def test_separate_guidance_passes_change_nothing_but_rounding(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: dict[str, torch.Tensor]
) -> None:
    apart = run(tiny, tmp_path / "a", capsys, guidance_passes="separate").latents
    for name in ("stage1_video", "stage1_audio", "stage2_video"):
        # Batched and single matrix products add up in another order
        assert (apart[name] - plain[name]).abs().max() < 1e-4, name


def test_a_clip_is_made_for_a_given_sound(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: dict[str, torch.Tensor]
) -> None:
    rate, seconds = 22050, FRAMES / 24
    samples = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    done = run(tiny, tmp_path / "a", capsys, audio=path)
    latents = done.latents
    assert torch.equal(latents["stage1_audio"], latents["stage2_audio"])
    assert latents["stage1_audio"].shape == plain["stage1_audio"].shape
    assert not torch.equal(latents["stage1_video"], plain["stage1_video"])
    heard = latents["audio_waveform"]
    assert heard.shape == (1, 2, round(seconds * rate))
    # Two steps of 16-bit samples: they were cut off, and scaled by one less than 2^15
    assert np.abs(heard[0].numpy() - samples[: heard.shape[2]]).max() < 2 / 2**15
    with av.open(str(done.folder / "clip.mp4")) as clip:
        assert clip.streams.audio[0].rate == rate
        sound = np.concatenate([frame.to_ndarray() for frame in clip.decode(audio=0)], axis=1)
        settings = json.loads(clip.metadata["ltx2_settings"])
    spectrum = np.abs(np.fft.rfft(sound[0, 1024:7168]))
    assert spectrum.argmax() * rate / 6144 == pytest.approx(440, abs=4)
    assert settings["audio"] == "tone.wav" and f"at {rate} Hz" in done.out
    decoded = run(tiny, tmp_path / "b", capsys, audio=path, audio_source="stage1").latents
    assert torch.equal(decoded["stage2_video"], latents["stage2_video"])
    assert decoded["audio_waveform"].shape == plain["audio_waveform"].shape


def test_the_last_frame_has_a_name(tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "last.png"
    Image.effect_noise((100, 80), 60).convert("RGB").save(image)
    named, numbered = (
        run(tiny, tmp_path / name, capsys, image=f"{image}@{frame}:0.9").latents
        for name, frame in (("a", "last"), ("b", FRAMES - 1))
    )
    assert all(torch.equal(tensor, numbered[name]) for name, tensor in named.items())


@pytest.mark.parametrize("recipe", ["hq", "distilled", "one-stage"])
def test_the_other_recipes_run(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    options = command(tiny, tmp_path, recipe=recipe, save_latents=tmp_path / "latents.safetensors")
    if recipe == "distilled":
        at = options.index("--steps")
        del options[at : at + 2]
    assert cli.main(options) == 0, capsys.readouterr().err
    latents = load_file(tmp_path / "latents.safetensors")
    assert ("stage2_video" in latents) == (recipe != "one-stage")
    assert all(tensor.float().isfinite().all() for tensor in latents.values())
    assert len(latents["stage1_sigmas"]) == {"hq": 3, "distilled": 9, "one-stage": 3}[recipe]
    assert recipe in capsys.readouterr().out


def test_a_folder_stands_for_the_set_that_it_holds(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(tiny.folder), "--prompt", "waves", "--output", str(tmp_path / "clip.mp4")]
    sizes = ["--width", "64", "--height", "64", "--frames", "9", "--steps", "1"]
    assert cli.main(["generate", *words, *sizes, "--report", str(tmp_path / "report.json")]) == 0
    chosen = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["files"]
    assert {role: Path(path) for role, path in chosen.items()} == {
        "checkpoint": tiny.checkpoint,
        "gemma": tiny.gemma,
        "upsampler": tiny.upsampler,
        "distilled_lora": tiny.distilled_lora,
    }
    said = capsys.readouterr().err
    assert all(f"{role}: " in said for role in ("checkpoint", "gemma", "upsampler", "distilled_lora"))


def test_a_long_prompt_is_cut_and_said(tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command(tiny, tmp_path, prompt="wave " * 1500), "--quiet"]) == 0
    assert "1024" in capsys.readouterr().err


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("stage", ["stage_1", "decode"])
def test_ctrl_c_leaves_no_file(
    tiny: TinyFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    def step(_self: object, name: str, _done: int) -> None:
        if name == stage:
            raise Interrupted

    monkeypatch.setattr(cli.TerminalProgress, "step", step)
    report, latents = tmp_path / "report.json", tmp_path / "latents.safetensors"
    assert cli.main(command(tiny, tmp_path, report=report, save_latents=latents)) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_and_leaves_no_file(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(self, mode, *arguments, **options)
        if mode != "xb":
            return file
        file.close()
        return opened(Path("/dev/full"), "wb")

    monkeypatch.setattr(Path, "open", full)
    assert cli.main([*command(tiny, tmp_path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "output" in error and "full" in error and str(tmp_path / "clip.mp4") in error
    assert list(tmp_path.iterdir()) == []


def test_make_tiny_puts_files_where_comfyui_looks(
    tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    words = ["make-tiny", str(models), "--comfyui", "--quiet"]
    assert cli.main(words) == 2
    assert f"directory = '{models}': is not ComfyUI's models folder" in capsys.readouterr().err
    (models / "checkpoints").mkdir(parents=True)
    assert cli.main(words) == 0
    placed = [Path(line).relative_to(models).as_posix() for line in capsys.readouterr().out.splitlines()]
    assert placed == [
        "checkpoints/ltx-2.3-22b-dev.safetensors",
        "loras/ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "latent_upscale_models/ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "loras/tiny-user-lora.safetensors",
        "text_encoders/gemma_3_12B_it.safetensors",
        "checkpoints/ltx-2.3-22b-distilled-1.1.safetensors",
    ]
    assert sorted(path.name for path in models.iterdir()) == sorted({place.split("/")[0] for place in placed})
    for template in TEMPLATES:
        nodes = (item for column in template.columns for item in column.items if isinstance(item, Node))
        named = {f"{file['directory']}/{file['name']}" for node in nodes for file in node.files}
        assert named <= set(placed) or template.name == "ltx2_two_stage_user_loras", (template.name, named)
    options = {"checkpoint": placed[0], "distilled_lora": placed[1], "upsampler": placed[2], "gemma": placed[4]}
    line = command(tiny, tmp_path, **{name: models / place for name, place in options.items()})
    assert cli.main([*line, "--quiet"]) == 0
    capsys.readouterr()
    checkpoint = models / placed[0]
    checkpoint.write_bytes(b"somebody's own file")
    assert cli.main(words) == 2
    assert f"holds {placed[0]} already" in capsys.readouterr().err
    assert checkpoint.read_bytes() == b"somebody's own file"
    assert len(list(models.iterdir())) == 4, "what was written before the refusal is gone"


@pytest.mark.skipif(sys.platform == "win32", reason="files have no such modes there")
def test_others_may_read_what_is_written(tiny: TinyFiles, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        (tmp_path / "models" / "checkpoints").mkdir(parents=True)
        assert cli.main(["make-tiny", str(tmp_path / "models"), "--comfyui", "--quiet"]) == 0
        files = {"report": tmp_path / "report.json", "save_latents": tmp_path / "latents.safetensors"}
        assert cli.main([*command(tiny, tmp_path, **files), "--quiet"]) == 0
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 9 and set(modes.values()) == {"0o644"}, modes


def test_make_tiny_tells_the_command_that_works_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["make-tiny", str(tmp_path / "t"), "--variant", "2.0", "--quiet"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == ["ltx2", "generate"] and "--prompt" in words
    paths = [
        Path(words[words.index(f"--{name}") + 1]) for name in ("checkpoint", "gemma", "upsampler", "distilled-lora")
    ]
    assert all(path.exists() for path in paths)


def test_fp8_from_the_file_to_the_clip(tiny: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint in fp8, as it is and not in fp8 any more; another one quantised while it is read."""
    assert cli.main(["make-tiny", str(tmp_path / "t"), "--fp8", "--quiet"]) == 0
    words = capsys.readouterr().out.split()
    checkpoint = words[words.index("--checkpoint") + 1]
    assert cli.main(["inspect", checkpoint]) == 0
    text = capsys.readouterr().out
    assert "fp8 layout" in text and "official" in text and "F8_E4M3" in text
    found = {}
    for name, file, precision in (
        ("stored", checkpoint, "auto"),
        ("full", checkpoint, "full"),
        ("quantised", tiny.checkpoint, "fp8"),
        ("plain", tiny.checkpoint, None),
    ):
        latents = tmp_path / f"{name}.safetensors"
        line = command(tiny, tmp_path, checkpoint=file, precision=precision, recipe="one-stage", save_latents=latents)
        assert cli.main([*line, "--quiet"]) == 0
        found[name] = load_file(latents)["stage1_video"]
    assert (found["stored"] - found["full"]).abs().max() < 1e-5
    assert 0 < (found["quantised"] - found["plain"]).norm() < 0.05 * found["plain"].norm()


def test_inspect_tells_what_a_file_holds(tiny: TinyFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny.checkpoint)]) == 0
    text = capsys.readouterr().out
    assert str(tiny.checkpoint) in text and "LTX-2.3" in text
    assert cli.main(["inspect", "--json", str(tiny.distilled_lora)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tiny.distilled_lora) and told["generation"] == "2.3"
    assert cli.main(["inspect", str(tiny.folder / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
