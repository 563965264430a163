"""The MP4 sink: what comes out is what went in, and a failure leaves nothing."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import OutputError, SettingError
from ltx2_two_stage.ltx2_core.media.mp4 import (
    EncodingOptions,
    Mp4Writer,
    check_writable,
    container_metadata,
    frame_rate,
)
from ltx2_two_stage.ltx2_core.media.sink import FrameSink
from ltx2_two_stage.ltx2_core.types import AudioClip

WIDTH, HEIGHT, RATE = 96, 64, 48000
COLOURS = torch.tensor(
    [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 0],
        [0, 255, 255],
        [255, 0, 255],
        [255, 255, 255],
        [0, 0, 0],
        [90, 140, 200],
    ]
)


def clip(frames: int = 9) -> torch.Tensor:
    """Frames of one saturated colour each, with a gray bar that moves."""
    picture = COLOURS[torch.arange(frames) % len(COLOURS)][:, None, None, :].expand(frames, HEIGHT, WIDTH, 3).clone()
    for index in range(frames):
        picture[index, :, 8 * (index % 8) : 8 * (index % 8) + 16] = 128
    return picture.to(torch.uint8)


def tone(seconds: float = 9 / 24, rate: int = RATE) -> AudioClip:
    time = torch.arange(round(seconds * rate)) / rate
    return AudioClip(torch.stack([0.5 * (440 * 6.2832 * time).sin(), 0.25 * (880 * 6.2832 * time).sin()])[None], rate)


def write(path: Path, **options: Any) -> Path:
    writer = Mp4Writer(path, **options)
    writer.open(WIDTH, HEIGHT, 24, RATE)
    frames = clip()
    writer.frames(frames[:1])
    writer.frames(frames[1:6])
    writer.audio(tone())
    writer.frames(frames[6:])
    return writer.close()


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    metadata = container_metadata({"seed": 10, "prompt": "smørrebrød"}, prompt={"1": {}}, workflow={"nodes": []})
    path = write(tmp_path / "clip.mp4", metadata=metadata, options=EncodingOptions(crf=10))
    assert left_in(tmp_path) == ["clip.mp4"]
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["ltx2_settings"]) == {"seed": 10, "prompt": "smørrebrød"}
        assert json.loads(container.metadata["prompt"]) == {"1": {}}
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate, video.frames) == (WIDTH, HEIGHT, 24, 9)
        assert video.pix_fmt == "yuv420p"
        context = video.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert audio.rate == RATE and audio.channels == 2
        decoded = list(container.decode(video))
        assert [frame.pts * frame.time_base for frame in decoded] == [Fraction(i, 24) for i in range(9)]
        rgb = torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]))
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    # 4:2:0 halves the chroma at the bar's edges, so judge the flat area: limited-range YUV and crf 10 cost a few
    # levels of 255. The 601 matrix instead of 709 would be off by more than 20 for these colours.
    flat = (rgb[:, :, 84:].float() - clip()[:, :, 84:].float()).abs()
    assert flat.max() <= 6
    wanted = tone().waveform[0].numpy()
    assert 0 <= sound.shape[1] - wanted.shape[1] < 2048  # AAC comes in blocks of 1024
    error = sound[:, 2048:14000] - wanted[:, 2048:14000]  # the first blocks have no past to predict from
    assert np.abs(error).max() < 0.05  # of full scale 1: lossy, but in phase and channels in order


def test_colour_matrix_is_bt709(tmp_path: Path) -> None:
    """Green's luma is 0.587 under BT.601 and 0.7152 under BT.709: 145 and 173 in limited range."""
    writer = Mp4Writer(tmp_path / "green.mp4", options=EncodingOptions(crf=1))
    writer.open(32, 32, 24, None)
    writer.frames(torch.tensor([0, 255, 0], dtype=torch.uint8).expand(1, 32, 32, 3))
    with av.open(str(writer.close())) as container:
        luma = next(container.decode(video=0)).to_ndarray()[:32]
    assert np.abs(luma.astype(int) - round(16 + 219 * 0.7152)).max() <= 2


def test_silent_clip_with_unicode_name(tmp_path: Path) -> None:
    folder = tmp_path / "día 日本"
    folder.mkdir()
    writer = Mp4Writer(folder / "птица ✨.mp4")
    writer.open(WIDTH, HEIGHT, 25, None)
    writer.frames(clip(3))
    path = writer.close()
    with av.open(str(path)) as container:
        assert len(container.streams) == 1 and container.streams.video[0].frames == 3
    assert left_in(folder) == ["птица ✨.mp4"]


def test_mono_sound_is_played_on_both_sides(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "mono.mp4")
    writer.open(WIDTH, HEIGHT, 24, 24000)
    writer.frames(clip(3))
    writer.audio(AudioClip(tone(rate=24000).waveform[:, :1], 24000))
    with av.open(str(writer.close())) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert sound.shape[0] == 2 and np.abs(sound).max() > 0.4
    assert np.abs(sound[0] - sound[1]).max() < 0.01  # AAC codes the channels jointly, hence not bit-equal


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_sound_that_is_not_finite_is_an_error_and_leaves_nothing(tmp_path: Path, value: float) -> None:
    waveform = tone().waveform.clone()
    waveform[..., 100] = value
    writer = Mp4Writer(tmp_path / "nan.mp4")
    writer.open(WIDTH, HEIGHT, 24, RATE)
    writer.frames(clip(3))
    with pytest.raises(OutputError, match="not finite"):
        writer.audio(AudioClip(waveform, RATE))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("seconds", [0.0, 1 / RATE, 0.1, 0.345, 9 / 24, 2.0], ids=lambda value: f"{value:.3f}s")
@pytest.mark.parametrize(("fps", "rate"), [(24, 48000), (23.976, 44100), (12.5, 16000)])
def test_the_sound_is_as_long_as_the_picture(tmp_path: Path, fps: float, rate: int, seconds: float) -> None:
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.open(WIDTH, HEIGHT, fps, rate)
    writer.audio(tone(seconds, rate))
    writer.frames(clip())
    with av.open(str(writer.close())) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        lengths = [float(stream.duration * stream.time_base) for stream in (video, audio)]
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert abs(lengths[0] - lengths[1]) <= 1 / rate  # a sample: the container counts whole ones
    silent = sound[:, round(seconds * rate) + 2048 :]  # AAC smears by its blocks of 1024
    assert np.abs(silent).max(initial=0) < 1e-3


def test_a_long_sound_is_written_while_frames_come(tmp_path: Path) -> None:
    """Longer than what the encoder gets at a time, and in order."""
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.open(WIDTH, HEIGHT, 2, 44100)
    ramp = torch.linspace(0, 1, 44100 * 5) * (2 * 3.14159 * 300 * torch.arange(44100 * 5) / 44100).sin()
    writer.audio(AudioClip(ramp.expand(1, 2, -1), 44100))
    writer.frames(clip(9))
    with av.open(str(writer.close())) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    wanted = ramp[: round(4.5 * 44100)].numpy()
    assert np.abs(sound[0, 2048 : len(wanted) - 2048] - wanted[2048:-2048]).max() < 0.05


def boxes(path: Path) -> list[str]:
    """Names of an MP4's outermost boxes, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big") or len(data) - at
        names.append(data[at + 4 : at + 8].decode("latin-1"))
        at += size
    return names


@pytest.mark.parametrize("audio_rate", [None, RATE])
@pytest.mark.parametrize("name", ["clip.mp4", "día 日本 #1%20.mp4", "a:b?c.mp4"])
def test_the_index_comes_before_the_pictures(tmp_path: Path, name: str, audio_rate: int | None) -> None:
    writer = Mp4Writer(tmp_path / name, container_metadata({"seed": 1}, workflow={"nodes": ["x" * 5000]}))
    writer.open(WIDTH, HEIGHT, 24, audio_rate)
    if audio_rate:
        writer.audio(tone())
    writer.frames(clip())
    path = writer.close()
    names = boxes(path)
    assert names.index("moov") < names.index("mdat") and left_in(tmp_path) == [name]
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9 and "workflow" in container.metadata


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (24, Fraction(24)),
        (24.0, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (25, Fraction(25)),
        (12.5, Fraction(25, 2)),
        (1, Fraction(1)),
    ],
)
def test_frame_rate(fps: float, expected: Fraction) -> None:
    assert frame_rate(fps) == expected


@pytest.mark.parametrize("fps", [0, -24, 0.0004, float("nan"), float("inf")])
def test_impossible_frame_rate(fps: float) -> None:
    with pytest.raises(SettingError, match="fps = "):
        frame_rate(fps)


@pytest.mark.parametrize(("size", "name"), [((95, 64), "width"), ((96, 63), "height"), ((0, 64), "width")])
def test_odd_sizes_are_refused_before_a_file_appears(tmp_path: Path, size: tuple[int, int], name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} = "):
        Mp4Writer(tmp_path / "odd.mp4").open(*size, 24, None)
    assert left_in(tmp_path) == []


def test_ntsc_rate_reaches_the_file(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "film.mp4")
    writer.open(WIDTH, HEIGHT, 23.976, None)
    writer.frames(clip(4))
    with av.open(str(writer.close())) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_the_file_appears_only_when_complete_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    writer = Mp4Writer(path)
    writer.open(WIDTH, HEIGHT, 24, None)
    writer.frames(clip())
    assert path.read_bytes() == b"old"
    writer.close()
    assert path.stat().st_size > 500 and left_in(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("when", ["before open", "after open", "after frames", "twice", "after close"])
def test_abort(tmp_path: Path, when: str) -> None:
    writer = Mp4Writer(tmp_path / "clip.mp4")
    if when != "before open":
        writer.open(WIDTH, HEIGHT, 24, RATE)
    if when in ("after frames", "twice", "after close"):
        writer.frames(clip())
        writer.audio(tone())
    if when == "after close":
        writer.close()
    writer.abort()
    if when == "twice":
        writer.abort()
    assert left_in(tmp_path) == (["clip.mp4"] if when == "after close" else [])


def test_an_exception_in_the_caller_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Mp4Writer(tmp_path / "clip.mp4") as writer:
        writer.open(WIDTH, HEIGHT, 24, None)
        writer.frames(clip())
        raise KeyboardInterrupt
    assert left_in(tmp_path) == []


class FullDisk:
    """A file on a disk that takes so many bytes and no more."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def replace_the_new_file(monkeypatch: pytest.MonkeyPatch, replacement: Callable[[BinaryIO], Any]) -> None:
    """Every file that is made anew is written through ``replacement``; reading is as always."""
    opened = Path.open

    def watched(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(self, mode, *arguments, **options)
        return replacement(cast("BinaryIO", file)) if mode == "xb" else file

    monkeypatch.setattr(Path, "open", watched)


@pytest.mark.parametrize("room", [0, 20, 3_000, 60_000], ids=["header", "early", "middle", "late"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    replace_the_new_file(monkeypatch, lambda file: FullDisk(file, room))
    path = tmp_path / "clip.mp4"
    noise = torch.randint(0, 256, (30, HEIGHT, WIDTH, 3), dtype=torch.uint8)  # does not compress: far above 60 kB
    writer = Mp4Writer(path, setting="--output")
    with pytest.raises(OutputError, match=r"--output = .*clip\.mp4.*disk is full.*Free some space"):
        writer.open(WIDTH, HEIGHT, 24, RATE)
        for _ in range(4):
            writer.frames(noise)
        writer.audio(tone(5))
        writer.close()
    assert left_in(tmp_path) == []
    assert not any(thread.name == "ltx2-mp4" for thread in threading.enumerate())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO) -> BinaryIO:
        file.close()
        return Path("/dev/full").open("wb")

    replace_the_new_file(monkeypatch, full)
    writer = Mp4Writer(tmp_path / "clip.mp4")
    with pytest.raises(OutputError, match="disk is full"):
        writer.open(WIDTH, HEIGHT, 24, None)
        writer.frames(clip())
        writer.close()
    assert left_in(tmp_path) == []


def test_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "clip.mp4"
    for attempt in (lambda: check_writable(path), lambda: Mp4Writer(path).open(WIDTH, HEIGHT, 24, None)):
        with pytest.raises(OutputError, match=r"output = .*clip\.mp4.*does not exist.*Create it first"):
            attempt()


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)  # root, as in containers, may write anywhere
    with pytest.raises(OutputError, match="not writable"):
        check_writable(tmp_path / "clip.mp4")


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "clip.mp4")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, HEIGHT, WIDTH, 3), torch.zeros(1, WIDTH, HEIGHT, 3, dtype=torch.uint8)],
    ids=["float", "size"],
)
def test_wrong_frames_are_refused(tmp_path: Path, frames: torch.Tensor) -> None:
    with Mp4Writer(tmp_path / "clip.mp4") as writer:
        writer.open(WIDTH, HEIGHT, 24, None)
        with pytest.raises(ValueError, match="expected uint8"):
            writer.frames(frames)


def test_sound_that_was_announced_must_come(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.open(WIDTH, HEIGHT, 24, RATE)
    writer.frames(clip())
    with pytest.raises(RuntimeError, match="never came"):
        writer.close()
    assert left_in(tmp_path) == []


def test_chunks_in_flight_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.open(WIDTH, HEIGHT, 24, None)
    assert writer._encoder is not None
    gate, encode = threading.Event(), writer._encoder.frames

    def held(*args: Any) -> None:
        gate.wait(60)
        encode(*args)

    monkeypatch.setattr(writer._encoder, "frames", held)
    handed: list[int] = []
    two = threading.Event()

    def produce() -> None:
        for index in range(4):
            writer.frames(clip(2))
            handed.append(index)
            if len(handed) == 2:
                two.set()

    producer = threading.Thread(target=produce)
    producer.start()
    assert two.wait(60)
    producer.join(0.2)
    assert len(handed) == 2  # one is being encoded, one waits; the third call blocks
    gate.set()
    producer.join(60)
    with av.open(str(writer.close())) as container:
        assert container.streams.video[0].frames == 8


def test_writer_is_a_sink(tmp_path: Path) -> None:
    sink: FrameSink = Mp4Writer(tmp_path / "clip.mp4")
    assert sink.close is not None
