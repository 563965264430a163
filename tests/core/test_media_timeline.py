"""Sound at the times at which a file has it, damaged, mixed down, and of odd lengths and rates."""

from __future__ import annotations

import os
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.media.audio import for_clip, given_sound, read_audio, with_clipping_said
from ltx2_two_stage.ltx2_core.media.channels import mixed_down
from ltx2_two_stage.ltx2_core.media.image import load_image
from ltx2_two_stage.ltx2_core.media.timeline import TimeLine
from ltx2_two_stage.ltx2_core.types import AudioClip
from torch import Tensor

RATE = 48000
HALF = 0.5**0.5


def ones(samples: int, level: float = 1.0) -> Tensor:
    return torch.full((1, samples), level)


@pytest.mark.parametrize(
    ("pieces", "expected", "counts"),
    [
        pytest.param([(3, 0), (3, 3)], "111222", (0, 0, 0), id="in a row"),
        pytest.param([(3, None), (3, None)], "111222", (0, 0, 0), id="no time stamps"),
        pytest.param([(3, 4), (2, 7)], "000011122", (4, 0, 0), id="a late start"),
        pytest.param([(3, 0), (2, 6)], "11100022", (0, 3, 0), id="a gap"),
        pytest.param([(3, 0), (2, 6), (2, None)], "1110002233", (0, 3, 0), id="a gap, then none"),
        pytest.param([(3, 0), (2, 4), (2, 6)], "1112233", (0, 0, 0), id="rounded time stamps"),
        pytest.param([(6, 0), (6, 3)], "111111222", (0, 0, 0), id="overlap"),
        pytest.param([(6, 0), (2, 2), (2, 6)], "11111133", (0, 0, 0), id="inside what there is"),
        pytest.param([(6, -4), (2, 2)], "1122", (0, 0, 0), id="priming"),
        pytest.param([(2, -5), (2, 0)], "22", (0, 0, 0), id="all of it priming"),
        pytest.param([(9, 0), (9, 9), (2, 0), (2, 2)], "1" * 9 + "2" * 9 + "3344", (0, 0, 1), id="counted anew"),
        pytest.param([(15, 0), (15, 15), (5, 30)], "1" * 15 + "2" * 10, (0, 0, 0), id="longer than wanted"),
        pytest.param([(3, 0), (3, 99)], "111", (0, 0, 0), id="behind the end"),
    ],
)
def test_pieces_lie_where_their_time_stamps_say(
    pieces: Sequence[tuple[int, int | None]], expected: str, counts: tuple[int, int, int]
) -> None:
    line = TimeLine(rate=10, longest=25)
    for number, (samples, at) in enumerate(pieces, 1):
        line.place(ones(samples, number), at, slack=1)
    assert "".join(str(int(value)) for value in line.sound()[0]) == expected
    assert (line.start, line.gaps, line.restarts) == counts


def sine(seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(np.arange(round(seconds * rate)) * (2 * np.pi * 440 / rate))).astype(np.float32)


def write_stream(
    path: Path, pieces: Sequence[tuple[float, float]], codec: str = "pcm_s16le", video: bool = True, **options: Any
) -> Path:
    """A file with a picture from 0 on and pieces of sound (start, seconds) in it, at their times."""
    with av.open(str(path), "w", **options) as container:
        if video:
            picture = container.add_stream("libx264", rate=10)
            picture.width = picture.height = 32
        sound = container.add_stream(codec, rate=RATE, layout="mono")
        for frame in range(3 if video else 0):
            blank = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            blank.pts, blank.time_base = frame, Fraction(1, 10)
            container.mux(picture.encode(blank))
        if video:
            container.mux(picture.encode(None))
        resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=RATE)
        for start, seconds in pieces:
            samples = sine(seconds)
            for at in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = round(start * RATE) + at
                for part in resampler.resample(frame):
                    container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    return path


def heard(sound: Tensor, rate: int = RATE) -> list[tuple[float, float]]:
    """(start, end) in seconds of what is not silent, to 5 ms; a pause is 20 ms long at least."""
    loud = (sound[0].abs().amax(dim=0) > 0.02).nonzero().flatten().tolist()
    spans: list[list[int]] = []
    for at in loud:
        if not spans or at - spans[-1][1] > rate // 50:
            spans.append([at, at])
        spans[-1][1] = at
    return [(round(start / rate, 3), round((end + 1) / rate, 3)) for start, end in spans]


@pytest.mark.parametrize(
    ("name", "codec", "pieces", "video", "expected", "said"),
    [
        pytest.param(
            "a.mkv", "pcm_s16le", [(0.5, 0.3)], True, [(0.5, 0.8)], "seconds after the file's start", id="late, mkv"
        ),
        pytest.param(
            "a.mp4", "aac", [(0.5, 0.3)], True, [(0.5, 0.8)], "seconds after the file's start", id="late, mp4"
        ),
        pytest.param(
            "a.mov", "pcm_s16le", [(0.25, 0.3)], True, [(0.25, 0.55)], "seconds after the file's start", id="late, mov"
        ),
        pytest.param(
            "a.ts", "mp2", [(0.5, 0.3)], True, [(0.5, 0.8)], "seconds after the file's start", id="late, transport"
        ),
        pytest.param("a.mkv", "pcm_s16le", [(0, 0.3)], True, [(0, 0.3)], None, id="from the start"),
        pytest.param("a.ts", "mp2", [(0, 0.3)], True, [(0, 0.3)], None, id="from the start, transport"),
        pytest.param("a.mka", "pcm_s16le", [(0.5, 0.3)], False, [(0, 0.3)], None, id="sound alone"),
        pytest.param(
            "a.mkv", "pcm_s16le", [(0, 0.2), (0.6, 0.2)], True, [(0, 0.2), (0.6, 0.8)], "gaps of 0.40", id="gap"
        ),
        pytest.param(
            "a.mkv",
            "pcm_s16le",
            [(0.1, 0.2), (0.4, 0.1), (0.7, 0.2)],
            True,
            [(0.1, 0.3), (0.4, 0.5), (0.7, 0.9)],
            "gaps of 0.30",
            id="late, and gaps",
        ),
    ],
)
def test_a_files_sound_is_heard_when_a_player_plays_it(
    tmp_path: Path,
    name: str,
    codec: str,
    pieces: list[tuple[float, float]],
    video: bool,
    expected: list[tuple[float, float]],
    said: str | None,
) -> None:
    clip = read_audio(write_stream(tmp_path / name, pieces, codec, video), 60)
    found = heard(clip.waveform)
    assert len(found) == len(expected)
    # 25 ms: lossy codecs smear by a block, and round their last one up
    assert np.abs(np.array(found) - np.array(expected)).max() < 0.025
    assert any(said in notice for notice in clip.notices) if said else not clip.notices


def test_reading_stops_inside_a_gap_and_before_a_late_sound(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "a.mkv", [(0, 0.2), (0.6, 0.2)])
    assert read_audio(path, 0.4).waveform.shape[-1] == pytest.approx(0.2 * RATE, abs=1024)
    assert read_audio(path, 0.7).waveform.shape[-1] == round(0.7 * RATE)
    late = write_stream(tmp_path / "late.mkv", [(2.0, 0.2)])
    with pytest.raises(SettingError, match="without any sound in it in its first 1 seconds"):
        read_audio(late, 1.0)


def write_mp3(path: Path, broken: Sequence[int]) -> Path:
    """One second of MP3, with the packets of these numbers overwritten."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine(1.0, 44100)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for start, size in (packets[number] for number in broken if number < len(packets)):
        data[start + 4 : start + size] = b"\xff" * (size - 4)  # the header stays: the packet is found, and is no sound
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("broken", [(), (5,), (12, 13), (4, 20, 28)], ids=str)
def test_damaged_packets_are_counted_and_move_nothing(tmp_path: Path, broken: tuple[int, ...]) -> None:
    whole = read_audio(write_mp3(tmp_path / "whole.mp3", ()), 60)
    clip = read_audio(write_mp3(tmp_path / "a.mp3", broken), 60)
    assert clip.waveform.shape == whole.waveform.shape
    assert torch.equal(clip.waveform[..., -3000:], whole.waveform[..., -3000:]), "what follows is where it was"
    assert bool(broken) == any("damaged packet" in notice for notice in clip.notices)


def test_a_file_of_damaged_packets_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="damaged"):
        read_audio(write_mp3(tmp_path / "a.mp3", range(60)), 60)


def test_of_several_audio_streams_the_first_is_taken_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "two.mka"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(2)]
        for stream, level in zip(streams, (8000, 16000), strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 800), level, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(stream.encode(frame))
    clip = read_audio(path, 60)
    assert clip.waveform[0, 0, :800].mean() == pytest.approx(8000 / 32768)
    assert clip.notices == ("The sound two.mka has 2 audio streams: the first is taken.",)


@pytest.mark.parametrize(
    ("names", "left", "right"),
    [
        pytest.param("FL FR FC", [1, 0, HALF], [0, 1, HALF], id="3.0"),
        pytest.param("FL FR LFE", [1, 0, 0], [0, 1, 0], id="2.1"),
        pytest.param("FL FR BL BR", [1, 0, HALF, 0], [0, 1, 0, HALF], id="quad"),
        pytest.param("FL FR FC BC", [1, 0, HALF, 0.5], [0, 1, HALF, 0.5], id="4.0"),
        pytest.param("FL FR FC LFE SL SR", [1, 0, HALF, 0, HALF, 0], [0, 1, HALF, 0, 0, HALF], id="5.1 side"),
        pytest.param("NONE NONE NONE", [1, 0, HALF], [0, 1, HALF], id="3 unknown"),
        pytest.param("", [1, 0, HALF, 0.5], [0, 1, HALF, 0.5], id="4 bare"),
        pytest.param("", [1, 0, HALF, HALF, 0], [0, 1, HALF, 0, HALF], id="5 bare"),
        pytest.param("", [1, 0, HALF, 0, HALF, 0], [0, 1, HALF, 0, 0, HALF], id="6 bare"),
        pytest.param("", [1, 0, HALF, 0, 0.5, HALF, 0], [0, 1, HALF, 0, 0.5, 0, HALF], id="7 bare"),
        pytest.param("", [1, 0, HALF, 0, HALF, 0, HALF, 0], [0, 1, HALF, 0, 0, HALF, 0, HALF], id="8 bare"),
        pytest.param("", [1] * 11, [1] * 11, id="11 bare"),
    ],
)
def test_every_layout_has_its_weights(names: str, left: list[float], right: list[float]) -> None:
    channels = torch.eye(len(left))
    mixed = mixed_down(channels, names.split())
    expected = torch.tensor([left, right], dtype=torch.float32)
    expected /= expected.sum(dim=1).max()
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)  # float32 rounding
    assert mixed_down(torch.ones(len(left), 4), names.split()).abs().max() <= 1 + 1e-6, "full scale stays full scale"


@pytest.mark.parametrize("channels", [1, 2])
def test_one_and_two_channels_are_left_alone(channels: int) -> None:
    sound = torch.randn(channels, 9)
    assert mixed_down(sound) is sound


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7, 8])
def test_a_file_and_an_audio_of_the_host_are_mixed_alike(tmp_path: Path, channels: int) -> None:
    samples = torch.randint(-20000, 20000, (channels, 500), generator=torch.Generator().manual_seed(channels))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.T.contiguous().numpy().astype("<i2").tobytes())
    read, given = read_audio(tmp_path / "a.wav", 60), given_sound(samples[None] / 32768, 8000, 60)
    torch.testing.assert_close(read.waveform, given.waveform, atol=1e-6, rtol=0)  # float32 rounding
    assert all("mixed down to stereo" in clip.notices[0] for clip in (read, given))


@pytest.mark.parametrize("samples", [1, 2, 100, 8000 * 600])
@pytest.mark.parametrize("rate", [1, 8000, 44101.0, 768000])
def test_a_given_sound_may_be_of_any_length(samples: int, rate: float) -> None:
    clip = given_sound(torch.zeros(1, 1, 1).expand(1, 2, samples), rate, 60)
    assert clip.waveform.shape == (1, 2, min(samples, int(60 * rate))) and clip.notices == ()
    assert for_clip(clip, 0.1).waveform.shape[1] == 2


@pytest.mark.parametrize(
    ("waveform", "rate", "setting"),
    [
        pytest.param(torch.zeros(1, 2, 9), 0, "audio rate", id="rate 0"),
        pytest.param(torch.zeros(1, 2, 9), -48000, "audio rate", id="negative rate"),
        pytest.param(torch.zeros(1, 2, 9), 768001, "audio rate", id="high rate"),
        pytest.param(torch.zeros(1, 2, 9), 10**400, "audio rate", id="huge rate"),
        pytest.param(torch.zeros(1, 2, 9), 44100.5, "audio rate", id="half a sample"),
        pytest.param(torch.zeros(1, 2, 9), float("nan"), "audio rate", id="nan rate"),
        pytest.param(torch.zeros(1, 2, 9), float("inf"), "audio rate", id="infinite rate"),
        pytest.param(torch.zeros(1, 2, 9), "48000", "audio rate", id="text"),
        pytest.param(torch.zeros(1, 2, 9), True, "audio rate", id="truth"),
        pytest.param(torch.zeros(1, 2, 9), None, "audio rate", id="no rate"),
        pytest.param(None, 8000, "audio", id="nothing"),
        pytest.param(np.zeros((1, 2, 9)), 8000, "audio", id="array"),
        pytest.param(torch.zeros(1, 2, 9, dtype=torch.int16), 8000, "audio", id="whole numbers"),
        pytest.param(torch.zeros(2, 2, 9), 8000, "audio", id="batch"),
        pytest.param(torch.zeros(2, 9), 8000, "audio", id="no batch"),
        pytest.param(torch.zeros(1, 0, 9), 8000, "audio", id="no channels"),
        pytest.param(torch.zeros(1, 2, 0), 8000, "audio", id="empty"),
        pytest.param(torch.zeros(1, 99, 9), 8000, "audio", id="99 channels"),
        pytest.param(torch.full((1, 1, 9), torch.nan), 8000, "audio", id="nan"),
        pytest.param(torch.full((1, 6, 9), -torch.inf), 8000, "audio", id="infinite surround"),
    ],
)
def test_what_is_no_sound_is_refused_by_name(waveform: Any, rate: Any, setting: str) -> None:
    with pytest.raises(SettingError) as caught:
        given_sound(waveform, rate, 60)
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([0.5, -1.0, 1.0], None),
        ([0.5, 1.5, 1.0], "in 1 sample (peak +3.5 dBFS)"),
        ([-2.0, 1.01, 2.0], "in 3 samples (peak +6.0 dBFS)"),
    ],
)
def test_clipping_is_said(levels: list[float], said: str | None) -> None:
    waveform = torch.tensor(levels)[None, None]
    notices = with_clipping_said(AudioClip(waveform, 48000)).notices
    assert (not notices) if said is None else said in notices[0]
    given = for_clip(AudioClip(waveform, 48000), 1.0)
    assert bool(given.notices) == bool(said), "the part of it that the clip has"
    assert not for_clip(AudioClip(torch.cat([torch.zeros(1, 1, 48000), waveform], 2), 48000), 1.0).notices


@pytest.mark.parametrize("read", [lambda path: read_audio(path, 60), load_image], ids=["sound", "picture"])
def test_what_is_no_file_ends_at_once(tmp_path: Path, read: Any) -> None:
    pipe, link = tmp_path / "pipe.wav", tmp_path / "link.wav"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path, problem in (
        (pipe, "pipe or a device"),
        (link, "pipe or a device"),
        (Path("/dev/zero"), "pipe or a device"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe.wav" / "a", "no such file"),
        (tmp_path / ("a" * 300), "cannot be opened"),
        (Path("a\0b"), "no file name"),
    ):
        with pytest.raises(SettingError, match=problem):
            read(path)


@pytest.mark.parametrize("read", [lambda path: read_audio(path, 60), load_image], ids=["sound", "picture"])
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a").write_bytes(b"0" * 100)
    monkeypatch.setattr(Path, "open", refuse)  # root, as in containers, may read anything
    with pytest.raises(SettingError, match="may not be read"):
        read(tmp_path / "a")


def test_a_list_of_other_files_is_not_followed(tmp_path: Path) -> None:
    write_mp3(tmp_path / "other.mp3", ())
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'other.mp3'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(SettingError):
        read_audio(playlist, 60)
