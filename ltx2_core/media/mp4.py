"""H.264 and AAC in an MP4 file, encoded while the frames are still being decoded."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from ..errors import LTX2Error, OutputError, SettingError, is_out_of_memory
from ..limits import checked
from ..plain_text import LONGEST_REPORT, json_text
from ..types import AudioClip
from ..whole_file import check_writable, followed, output_error, part_of, remove
from .audio import fitted

log = logging.getLogger("ltx2.media")

SETTINGS_KEY = "ltx2_settings"
_BT709 = 1  # ITU-T H.273 code point, the same for primaries, transfer and matrix
_NTSC_TOLERANCE = 0.005  # 23.98, as people write it, is 0.004 from 24000/1001
_AUDIO_SLICE = 1 << 16  # samples handed to the encoder at a time
# Without the first the muxer drops every key it does not know; the second puts the index before the pictures, so that
# a page can play the file while it loads
_MOVFLAGS = "use_metadata_tags+faststart"


def container_metadata(settings: Mapping[str, Any], prompt: Any = None, workflow: Any = None) -> dict[str, str]:
    """Container tags: our settings, and ComfyUI's graphs under the keys from which its page restores a workflow.

    Args:
        settings: what made the clip; anything that JSON can hold.
        prompt: ComfyUI's executed graph, None outside it.
        workflow: ComfyUI's editable graph, None outside it.
    """
    tags = {SETTINGS_KEY: _cut(settings), "prompt": prompt, "workflow": workflow}
    return {key: json_text(value) for key, value in tags.items() if value is not None}


def _cut(value: Any) -> Any:
    """Texts of megabytes without their ends: no player reads tags of that size."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_REPORT else f"{value[: LONGEST_REPORT - 1]}…"
    if isinstance(value, Mapping):
        return {_cut(key): _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, (list, tuple)) else value


def frame_rate(fps: float) -> Fraction:
    """The exact rate that ``fps`` stands for: 23.976 is 24000/1001, whole numbers stay whole.

    Raises:
        SettingError: ``fps`` is not a number that :data:`~..limits.LIMITS` allows.
    """
    checked("fps", fps)
    for nominal in (24, 30, 48, 60, 120):
        ntsc = Fraction(nominal * 1000, 1001)
        if abs(float(ntsc) - fps) < _NTSC_TOLERANCE:
            return ntsc
    return Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True)
class EncodingOptions:
    """Quality of a file.

    Attributes:
        crf: libx264's constant quality, 0 (lossless) to 51; 18 is visually transparent.
        preset: libx264's trade of speed for size.
        audio_bitrate: of the AAC stream, bits per second.
    """

    crf: int = 18
    preset: str = "medium"
    audio_bitrate: int = 192_000


class _Encoder:
    """One open container. Not thread-safe: a single thread feeds it.

    The sound is encoded up to the end of the picture so far, and is as long as the picture in the end.
    """

    def __init__(
        self,
        file: BinaryIO,
        part: Path,
        size: tuple[int, int],
        rate: Fraction,
        audio_rate: int | None,
        options: EncodingOptions,
        metadata: Mapping[str, str],
    ) -> None:
        self._rate, self._next = rate, 0
        self._sound: Tensor | None = None  # (2, N), from the clip's start
        self._heard = 0  # samples that are encoded

        def reopened(_url: str, _flags: int, _options: Mapping[str, str]) -> BinaryIO:
            """The file for the muxer's own reading, when it moves the pictures behind the index."""
            file.flush()
            return part.open("rb")

        container = {"movflags": _MOVFLAGS}
        if audio_rate is not None:
            container["movie_timescale"] = str(audio_rate)  # in the muxer's milliseconds both streams' ends are rounded
        self._container = av.open(file, "w", format="mp4", options=container, io_open=reopened)
        self._container.metadata.update(metadata)
        self._video: VideoStream = self._container.add_stream(
            "libx264", rate=rate, options={"crf": str(options.crf), "preset": options.preset}
        )
        self._video.width, self._video.height, self._video.pix_fmt = *size, "yuv420p"
        context = self._video.codec_context
        context.thread_type = "FRAME"  # PyAV's default cuts every picture into one slice per core
        context.color_range, context.colorspace = ColorRange.MPEG, _BT709
        context.color_primaries = context.color_trc = _BT709
        self._audio: AudioStream | None = None
        if audio_rate is not None:
            self._audio = self._container.add_stream("aac", rate=audio_rate, layout="stereo")
            self._audio.bit_rate = options.audio_bitrate

    def frames(self, frames: Tensor, stopped: threading.Event) -> None:
        for pixels in frames.numpy():
            if stopped.is_set():
                return
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = self._next, 1 / self._rate
            self._next += 1
            self._container.mux(self._video.encode(frame))
            self._hear()

    def audio(self, clip: AudioClip) -> None:
        self._sound = clip.waveform[0].float().expand(2, -1).clamp(-1.0, 1.0)
        self._hear()

    def _hear(self) -> None:
        """Encodes the sound up to the picture's end in whole slices; nothing before it is there."""
        while self._sound is not None and self._heard + _AUDIO_SLICE <= self._picture_samples:
            self._encode_sound(_AUDIO_SLICE)

    @property
    def _picture_samples(self) -> int:
        """Samples of sound that last as long as the frames so far."""
        assert self._audio is not None
        return round(self._next / self._rate * self._audio.rate)

    def _encode_sound(self, samples: int) -> None:
        """Encodes the next samples; behind the sound's end they are silent."""
        assert self._audio is not None and self._sound is not None
        piece = fitted(self._sound[:, self._heard : self._heard + samples], samples)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.numpy()), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = self._audio.rate, self._heard, Fraction(1, self._audio.rate)
        self._heard += samples
        self._container.mux(self._audio.encode(frame))

    def finish(self) -> None:
        if not self._next:
            raise RuntimeError("a clip needs at least one frame")
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            if self._sound is None:
                raise RuntimeError("sound was announced but never came")
            if self._heard < self._picture_samples:
                self._encode_sound(self._picture_samples - self._heard)
            self._container.mux(self._audio.encode(None))
        self._container.close()

    def discard(self) -> None:
        # Closing writes the trailer, which fails again on a full disk; the file is removed in any case.
        with contextlib.suppress(OSError, ValueError, av.FFmpegError):
            self._container.close()


class Mp4Writer:
    """A :class:`~.sink.FrameSink` that encodes on a thread of its own while the caller decodes the next frames.

    The file grows under a temporary name beside ``path`` and takes its name in :meth:`close`. After an error or
    :meth:`abort` nothing of it is left. At most two chunks handed to :meth:`frames` are held at a time.

    Args:
        path: the MP4 file; an existing one is replaced when the clip is complete.
        metadata: container tags, see :func:`container_metadata`.
        options: quality.
        setting: name of the setting that errors show.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        options: EncodingOptions | None = None,
        setting: str = "output",
    ) -> None:
        self.path = Path(path)
        self._metadata, self._options, self._setting = dict(metadata or {}), options or EncodingOptions(), setting
        self._target = self.path  # links are followed when it is opened
        self._part: Path | None = None
        self._size = (0, 0)
        self._audio_rate: int | None = None
        self._file: BinaryIO | None = None
        self._encoder: _Encoder | None = None
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._worker: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()  # does nothing after close

    def open(self, width: int, height: int, fps: float, audio_rate: int | None) -> None:
        """Creates the temporary file.

        Raises:
            SettingError: an odd size (4:2:0 pictures have even ones) or an impossible rate.
            OutputError: the folder is missing or not writable.
        """
        for name, value in (("width", width), ("height", height)):
            if value < 2 or value % 2:
                raise SettingError(name, value, "must be even and positive for H.264", "Use a multiple of 32.")
        rate = frame_rate(fps)
        if self._worker is not None:
            raise RuntimeError("the writer is already open")
        check_writable(self.path, self._setting)
        self._target = followed(self.path, self._setting)
        self._size, self._audio_rate = (width, height), audio_rate
        with self._all_or_nothing():
            self._part = part_of(self._target)
            self._file = self._part.open("xb")
            encoding = (self._size, rate, audio_rate, self._options, self._metadata)
            self._encoder = _Encoder(self._file, self._part, *encoding)
            self._worker = self._started()

    def frames(self, frames: Tensor) -> None:
        """Queues uint8 (f, H, W, 3) frames; waits while two chunks are still being encoded.

        Raises:
            ValueError: another size or type than announced.
            OutputError: writing failed, possibly with an earlier chunk.
        """
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != (self._size[1], self._size[0], 3):
            raise ValueError(
                f"expected uint8 (f, {self._size[1]}, {self._size[0]}, 3), got {frames.dtype} {frames.shape}"
            )
        encoder = self._opened()
        self._submit(lambda: encoder.frames(frames, self._stopped))

    def audio(self, clip: AudioClip) -> None:
        """Queues the sound, one or two channels. The file has as much of it as pictures, or silence behind its end.

        Raises:
            ValueError: another rate than announced.
            OutputError: it holds what is no finite number, or writing failed, possibly with an earlier chunk.
        """
        if clip.sampling_rate != self._audio_rate:
            raise ValueError(f"sound at {clip.sampling_rate} Hz, but {self._audio_rate} Hz was announced")
        encoder = self._opened()
        if not bool(clip.waveform.isfinite().all()):
            self.abort()
            fix = "Try another seed; if that does not help, the model files or a LoRA may be damaged."
            raise OutputError(self._setting, self.path, "the sound holds values that are not finite numbers", fix)
        clip = AudioClip(clip.waveform.detach().cpu(), clip.sampling_rate)
        self._submit(lambda: encoder.audio(clip))

    def close(self) -> Path:
        """Finishes the file and gives it its name.

        Raises:
            OutputError: writing failed.
        """
        encoder = self._opened()
        self._submit(encoder.finish)
        with self._all_or_nothing():
            self._stop()
            self._raise_failure()
            assert self._file is not None
            self._file.flush()
            os.fsync(self._file.fileno())  # a full disk may show only now
            self._file.close()
            if self._part is not None:
                self._part.replace(self._target)
        self._encoder = None
        log.info("wrote %s", self.path)
        return self.path

    def abort(self) -> None:
        """Stops encoding and removes the temporary file; a finished file stays."""
        self._stopped.set()
        self._stop()
        if self._encoder is not None:
            self._encoder.discard()
            self._encoder = None
        if self._file is not None:
            with contextlib.suppress(OSError):  # the buffer of a full disk cannot be flushed
                self._file.close()
            self._file = None
        if self._part is not None:
            remove(self._part)

    def _started(self) -> threading.Thread:
        worker = threading.Thread(target=self._encode, name="ltx2-mp4", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:
            fix = "Close other programs, or raise the limit of processes."
            raise OutputError(self._setting, self.path, f"no thread can be started ({error})", fix) from error
        return worker

    def _opened(self) -> _Encoder:
        if self._encoder is None:
            raise RuntimeError("the writer is not open")
        return self._encoder

    def _submit(self, job: Callable[[], None]) -> None:
        with self._all_or_nothing():
            self._raise_failure()
            self._jobs.put(job)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _encode(self) -> None:
        """Body of the thread. After a failure it goes on emptying the queue, so that nobody waits for it forever."""
        while (job := self._jobs.get()) is not None:
            if self._failure is None and not self._stopped.is_set():
                try:
                    job()
                except BaseException as error:  # carried to the caller's thread
                    self._failure = error

    def _stop(self) -> None:
        if self._worker is None:
            return
        # A second Ctrl-C can end an earlier _stop half-way: never wait for room that a finished thread will not make.
        while self._worker.is_alive():
            with contextlib.suppress(queue.Full):
                self._jobs.put(None, timeout=0.1)
                break
        self._worker.join()
        self._worker = None

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Any exception removes the temporary file; those of the system become an :class:`OutputError`."""
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            self.abort()
            if isinstance(error, LTX2Error) or is_out_of_memory(error):
                raise
            raise output_error(self._setting, self.path, error) from error
        except BaseException:
            self.abort()
            raise
