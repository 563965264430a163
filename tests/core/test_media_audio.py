"""Sound read from files, resampled, and cut to a clip's length."""

from __future__ import annotations

import io
import math
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.media import resample as resample_module
from ltx2_two_stage.ltx2_core.media.audio import AAC_RATES, fitted, for_clip, read_audio, resampled, stereo
from ltx2_two_stage.ltx2_core.media.resample import resample
from ltx2_two_stage.ltx2_core.types import AudioClip
from torch import Tensor

# 16-bit samples: half a step of 1/32768
PCM16 = 2e-5


def tones(rate: int, seconds: float, *hertz: float) -> Tensor:
    """(1, channels, N): one sine of each frequency."""
    t = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return torch.stack([torch.sin(2 * math.pi * f * t) * 0.5 for f in hertz])[None].float()


def write_wav(path: Path, waveform: Tensor, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(waveform.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((waveform[0].T * 32767).round().numpy().astype("<i2").tobytes())
    return path


def write(path: Path, codec: str, waveform: Tensor, rate: int, layout: str, sample_format: str = "fltp") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(waveform[0].contiguous().numpy(), format="fltp", layout=layout)
        frame.sample_rate = rate
        for part in av.AudioResampler(format=sample_format, layout=layout, rate=rate).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_file_is_read_as_it_is(tmp_path: Path, rate: int, channels: int) -> None:
    waveform = tones(rate, 0.5, *(440.0, 1000.0)[:channels])
    clip = read_audio(write_wav(tmp_path / "a.wav", waveform, rate), 60)
    assert clip.sampling_rate == rate and clip.waveform.shape == waveform.shape
    assert clip.waveform.dtype == torch.float32
    assert (clip.waveform - waveform).abs().max() < 2 * PCM16


@pytest.mark.parametrize(
    ("name", "codec", "sample_format"), [("a.mp3", "mp3", "fltp"), ("a.flac", "flac", "s16"), ("a.mp4", "aac", "fltp")]
)
def test_other_formats_are_read(tmp_path: Path, name: str, codec: str, sample_format: str) -> None:
    path = write(tmp_path / name, codec, tones(48000, 1.0, 440.0, 660.0), 48000, "stereo", sample_format)
    clip = read_audio(path, 60)
    assert clip.sampling_rate == 48000 and clip.waveform.shape[:2] == (1, 2)
    assert clip.waveform.shape[2] == pytest.approx(48000, abs=3000)  # lossy codecs add a frame or two of priming
    spectrum = torch.fft.rfft(clip.waveform[0, :, 4000:44000]).abs()
    assert (spectrum.argmax(dim=1) * 48000 / 40000).tolist() == pytest.approx([440, 660], abs=2)


def test_reading_stops_after_the_longest_clip(tmp_path: Path) -> None:
    waveform = tones(16000, 3.0, 440.0)
    clip = read_audio(write_wav(tmp_path / "a.wav", waveform, 16000), 1.25)
    assert clip.waveform.shape == (1, 1, 20000)
    assert (clip.waveform - waveform[..., :20000]).abs().max() < 2 * PCM16


def test_more_than_two_channels_are_mixed_down(tmp_path: Path) -> None:
    waveform = torch.cat([tones(48000, 0.5, 440.0), torch.zeros(1, 5, 24000)], dim=1)
    clip = read_audio(write(tmp_path / "a.flac", "flac", waveform, 48000, "5.1", "s16"), 60)
    assert clip.waveform.shape == (1, 2, 24000)
    left, right = clip.waveform[0].std(dim=1)
    assert left > 0.1 and right < 1e-3


def test_the_sound_of_a_video_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=24)
        picture.width = picture.height = 64
        sound = container.add_stream("aac", rate=44100, layout="mono")
        blank = np.zeros((64, 64, 3), np.uint8)
        container.mux(picture.encode(av.VideoFrame.from_ndarray(blank, format="rgb24")))
        container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(tones(44100, 0.5, 440.0)[0].numpy(), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    path = tmp_path / "clip.mp4"
    path.write_bytes(buffer.getvalue())
    clip = read_audio(path, 60)
    assert clip.sampling_rate == 44100 and clip.waveform.std() > 0.1


def test_what_holds_no_sound_is_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("hello")
    cut = tmp_path / "cut.mp4"
    whole = write(tmp_path / "whole.mp4", "aac", tones(48000, 1.0, 440.0), 48000, "mono").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (
        tmp_path,
        tmp_path / "none.wav",
        text,
        cut,
        write_wav(tmp_path / "no.wav", torch.zeros(1, 1, 0), 8000),
    ):
        with pytest.raises(SettingError) as caught:
            read_audio(path, 60, "sound")
        assert caught.value.setting == "sound" and caught.value.value == str(path)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 192000])
@pytest.mark.parametrize("channels", [1, 2])
def test_resampling_keeps_time_and_level(rate: int, channels: int) -> None:
    hertz = (440.0, 1333.0)[:channels]
    result = resampled(AudioClip(tones(rate, 6.0, *hertz), rate), 16000)
    expected = tones(16000, 6.0, *hertz)
    assert result.sampling_rate == 16000 and result.waveform.shape == expected.shape
    # The filter is 12 samples of the lower rate long: at the ends it meets silence
    inside = (result.waveform - expected)[..., 200:-200].abs()
    assert inside.max() < 1e-3  # the ripple of official code's filter, of a signal of 0.5


def test_resampling_leaves_out_what_the_new_rate_cannot_hold() -> None:
    result = resampled(AudioClip(tones(48000, 1.0, 12000.0), 48000), 16000)
    assert result.waveform[..., 200:-200].abs().max() < 1e-3


def test_the_same_rate_is_the_same_clip() -> None:
    clip = AudioClip(tones(16000, 0.1, 440.0), 16000)
    assert resampled(clip, 16000) is clip


def test_long_sounds_are_resampled_without_seams() -> None:
    """Longer than what the resampler gets at a time."""
    result = resampled(AudioClip(tones(48000, 5.0, 440.0), 48000), 16000).waveform
    assert (result - tones(16000, 5.0, 440.0))[..., 200:-200].abs().max() < 5e-4


@pytest.mark.parametrize(("samples", "expected"), [(2, [1.0, 2.0]), (3, [1.0, 2.0, 3.0]), (5, [1.0, 2.0, 3.0, 0, 0])])
def test_fitting_cuts_the_end_or_adds_silence(samples: int, expected: list[float]) -> None:
    assert fitted(torch.tensor([[1.0, 2.0, 3.0]]), samples).tolist() == [expected]


def test_one_channel_is_heard_on_both_sides() -> None:
    waveform = tones(16000, 0.1, 440.0)
    both = stereo(AudioClip(waveform, 16000)).waveform
    assert torch.equal(both[:, 0], waveform[:, 0]) and torch.equal(both[:, 1], waveform[:, 0])


@pytest.mark.parametrize("seconds", [0.25, 2.0])
@pytest.mark.parametrize("rate", AAC_RATES)
def test_the_clips_sound_is_the_given_one_as_long_as_the_clip(rate: int, seconds: float) -> None:
    waveform = tones(rate, 1.0, 440.0, 600.0)
    clip = for_clip(AudioClip(waveform, rate), seconds)
    samples = round(seconds * rate)
    assert clip.sampling_rate == rate and clip.waveform.shape == (1, 2, samples)
    kept = min(samples, rate)
    assert torch.equal(clip.waveform[..., :kept], waveform[..., :kept])
    assert not clip.waveform[..., kept:].any()


@pytest.mark.parametrize("rate", [1000, 6000, 50000, 192000])
def test_a_rate_that_mp4_does_not_know_is_changed(rate: int) -> None:
    clip = for_clip(AudioClip(tones(rate, 1.0, 200.0), rate), 0.5)
    assert clip.sampling_rate == 48000 and clip.waveform.shape == (1, 2, 24000)
    assert (clip.waveform - tones(48000, 0.5, 200.0))[..., 3000:-3000].abs().max() < 5e-4


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (7, 3, [0.07272106, 0.32195255, 0.31352594, 0.19707754, 0.28167790, 0.29261416]),
        (44100, 16000, [0.08288204, 0.33904201, 0.26294893, 0.22060728, 0.32421541]),
        (16000, 48000, None),
        (22050, 16000, None),
        (44101, 16000, None),
        (1, 12, None),
    ],
)
def test_the_filter_is_the_written_formula(old: int, new: int, expected: list[float] | None) -> None:
    """Against the sum in float64, and against torchaudio 2.11 (functional.resample with its defaults)."""
    sound = 0.7 * torch.sin(torch.arange(12, dtype=torch.float64) ** 2 * 0.9)
    found = resample(sound[None].float(), old, new)[0]
    gain = 0.99 * min(1, new / old)
    places = torch.arange(len(found), dtype=torch.float64) * old / new
    u = (torch.arange(12, dtype=torch.float64) - places[:, None]) * gain
    weights = torch.sinc(u) * torch.cos(math.pi * u / 12).square() * (u.abs() < 6) * gain
    assert len(found) == math.ceil(12 * new / old)
    assert (found - weights @ sound).abs().max() < 5e-5  # times in float32, as torchaudio has them
    if expected is not None:
        assert (found[: len(expected)] - torch.tensor(expected)).abs().max() < 1e-6


@pytest.mark.parametrize(("old", "new"), [(48000, 16000), (44101, 16000), (44100, 48000)])
def test_pieces_of_a_resampled_sound_meet_without_seams(monkeypatch: pytest.MonkeyPatch, old: int, new: int) -> None:
    sound = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    whole = resample(sound, old, new)
    monkeypatch.setattr(resample_module, "_SAMPLES", 1000)
    assert (resample(sound, old, new) - whole).abs().max() < 1e-6  # sums of float32 in another order
