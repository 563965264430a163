"""The sound of a file, at the times at which the file has it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from torch import Tensor

from ..errors import SettingError
from ..types import AudioClip
from .channels import MOST_CHANNELS, mixed_down
from .resample import resample
from .source import open_media, shown_name
from .timeline import TimeLine

__all__ = ["HIGHEST_RATE", "read_audio"]

HIGHEST_RATE = 768_000  # Hz: the highest of sound cards; memory and time grow with it
_FIX = "Give a file that plays in a media player, such as a WAV, FLAC, MP3 or MP4 file."
_ROUNDED = 0.01  # seconds by which time stamps may be off: recorders write milliseconds and miss them by a few
_PEEKED = 8  # packets: reordered frames are shown before the first
# A file may be a list of others (HLS, concat); FFmpeg opens none of them
_OPTIONS = {"protocol_whitelist": "data"}


def read_audio(path: Path, longest: float, setting: str = "audio") -> AudioClip:
    """The first audio stream of a file; more than two channels are mixed down to stereo.

    Sound is heard when a player plays it: a stream that begins after the file's other streams follows silence, gaps
    are silent, and what lies before time 0 (the priming of codecs) is cut. Damaged packets are left out.

    Args:
        longest: seconds after which reading stops.
        setting: name of the setting that errors show.

    Returns:
        One or two channels at the stream's own rate, with notices of what was mixed, left out or damaged.

    Raises:
        SettingError: there is no such file, it has no audio stream, or it cannot be decoded.
    """
    path = Path(path)
    with open_media(path, setting, "sound") as file:
        try:
            with av.open(file, options=_OPTIONS) as container:
                if not container.streams.audio:
                    raise SettingError(setting, path, "has no audio stream", _FIX)
                reading = _Reading(container, _origin(container, path), longest)
                sound = reading.sound()
        except (SettingError, MemoryError):
            raise
        except _Unusable as error:
            raise SettingError(setting, path, str(error), _FIX) from error
        except Exception as error:  # FFmpeg's errors, and what its Python wrapper stumbles over in damaged files
            problem = f"is no sound that can be read ({_reason(error)})"
            raise SettingError(setting, path, problem, _FIX) from error
    if not sound.shape[-1]:
        raise SettingError(setting, path, f"has an audio stream without any sound in it{reading.where}", _FIX)
    name = shown_name(path)
    return AudioClip(sound[None], reading.rate, tuple(f"The sound {name} {notice}." for notice in reading.notices()))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Unusable(ValueError):
    """What is wrong with the stream, as the rest of a sentence."""


@dataclass
class _Run:
    """Consecutive frames at another rate than the first frame's."""

    rate: int
    at: int | None
    pieces: list[Tensor] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(piece.shape[1] for piece in self.pieces) / self.rate


class _Reading:
    """Decodes the first audio stream of an open container.

    Attributes:
        rate: of the first frame, Hz, which is that of the result.
    """

    def __init__(self, container: InputContainer, origin: Fraction, longest: float) -> None:
        self.rate = 0
        self._container, self._longest = container, longest
        self._streams = len(container.streams.audio)
        self._stream: AudioStream = container.streams.audio[0]
        self._origin = origin
        self._line = TimeLine(1, 0)
        self._damaged, self._skipped, self._ended = 0, False, False
        self._layouts: dict[str, None] = {}
        self._rates: dict[int, None] = {}
        self._run: _Run | None = None

    def sound(self) -> Tensor:
        """(channels, N) float32."""
        for frame in self._frames():
            self._add(frame)
            if self._line.full:
                break
        self._flush()
        return self._line.sound()

    @property
    def where(self) -> str:
        if self._line.full:
            return f" in its first {self._longest:g} seconds"
        return f": {self._damaged} packets are damaged" if self._damaged else ""

    def notices(self) -> Iterator[str]:
        """What the user should know of how the sound was read, each the rest of a sentence."""
        line = self._line
        if self._streams > 1:
            yield f"has {self._streams} audio streams: the first is taken"
        if self._damaged:
            packets = "1 damaged packet" if self._damaged == 1 else f"{self._damaged} damaged packets"
            yield f"has {packets}: silence is in their place"
        if self._ended:
            yield "is damaged: it ends where the file cannot be read on"
        if line.start > _ROUNDED * line.rate:
            yield f"begins {line.start / line.rate:.2f} seconds after the file's start: silence comes first"
        if line.gaps and not self._damaged:
            yield f"has gaps of {line.gaps / line.rate:.2f} seconds in all: they are silent"
        if line.restarts:
            yield "has time stamps that begin anew: each part follows the one before"
        if self._layouts:
            yield f"has more than two channels ({', '.join(self._layouts)}): they are mixed down to stereo"
        if len(self._rates) > 1:
            yield f"changes its rate ({', '.join(map(str, self._rates))} Hz): all of it is brought to {self.rate} Hz"

    def _frames(self) -> Iterator[AudioFrame]:
        """Every frame that can be decoded; packets that cannot are counted."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                self._ended = True
                return
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if packet.size:  # the empty one at the end is not the file's
                    self._damaged, self._skipped = self._damaged + 1, True
                continue
            for frame in frames:
                if isinstance(frame, AudioFrame) and frame.samples:
                    yield frame

    def _add(self, frame: AudioFrame) -> None:
        rate = frame.sample_rate
        if not 1 <= rate <= HIGHEST_RATE:
            raise _Unusable(f"has a rate of {rate} Hz: 1 to {HIGHEST_RATE} work")
        if not self.rate:
            self.rate, self._line = rate, TimeLine(rate, max(int(self._longest * rate), 1))
        self._rates[rate] = None
        piece, at = self._stereo(frame), self._at(frame)
        slack = self._slack(frame)
        if rate == self.rate:
            self._flush()
            self._line.place(piece, at, slack)
            return
        if self._run is None or self._run.rate != rate:
            self._flush()
            self._run = _Run(rate, at)
        self._run.pieces.append(piece)
        if self._run.seconds * self.rate >= self._line.longest:
            self._flush()

    def _flush(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            channels = max(piece.shape[0] for piece in run.pieces)
            joined = torch.cat([piece.expand(channels, -1) for piece in run.pieces], dim=1)
            self._line.place(resample(joined, run.rate, self.rate), run.at, int(_ROUNDED * self.rate))

    def _at(self, frame: AudioFrame) -> int | None:
        """The sample at which a frame begins, where the file says it."""
        if frame.pts is None or not frame.time_base:
            return None
        return round((frame.pts * frame.time_base - self._origin) * self.rate)

    def _slack(self, frame: AudioFrame) -> int:
        """Samples by which time stamps are taken to be rounded; less where a frame is known to be missing."""
        ticks = int(2 * (frame.time_base or 0) * self.rate) + 1
        exact, self._skipped = self._skipped, False
        return ticks if exact else max(ticks, int(_ROUNDED * self.rate))

    def _stereo(self, frame: AudioFrame) -> Tensor:
        samples = torch.from_numpy(_samples(frame))
        if samples.shape[0] > MOST_CHANNELS:
            raise _Unusable(f"has {samples.shape[0]} channels: {MOST_CHANNELS} at most work")
        if samples.shape[0] > 2:
            self._layouts[frame.layout.name] = None
        return mixed_down(samples, [channel.name for channel in frame.layout.channels])


def _samples(frame: AudioFrame) -> np.ndarray:
    """(channels, N) float32, full scale at 1."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(frame.samples, -1).T
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array, np.float32)
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    middle = half if array.dtype.kind == "u" else 0.0
    return np.ascontiguousarray((array.astype(np.float64) - middle) / half, np.float32)


def _origin(container: InputContainer, path: Path) -> Fraction:
    """Time 0 of the file in seconds: where the first of its streams begins, a cover picture aside; not below 0."""
    pictures = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    starts = [
        stream.start_time * stream.time_base
        for stream in (*container.streams.audio, *pictures)
        if stream.start_time is not None and stream.time_base
    ]
    first = max(min(starts, default=Fraction(0)), Fraction(0))
    # FFmpeg takes the sound's start for the picture's where a few frames in another order have no decoding times
    return min(first, _first_picture(path)) if first and pictures else first


def _first_picture(path: Path) -> Fraction:
    """When the first packets of the pictures are shown, seconds, not below 0; a billion without any."""
    times = []
    with open_media(path, "audio", "sound") as file, av.open(file, options=_OPTIONS) as container:
        for packet in itertools.islice(container.demux(video=0), _PEEKED):
            if packet.pts is not None and packet.time_base:
                times.append(packet.pts * packet.time_base)
    return max(min(times, default=Fraction(10**9)), Fraction(0))
