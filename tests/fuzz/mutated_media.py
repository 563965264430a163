"""Small sound and picture files with bytes changed, cut and doubled: each ends in a clear error or a result.

``python tests/fuzz/mutated_media.py [count]`` tries so many of them (2000), with the package installed, and says what
came out. The slowest is named, and the process's peak memory.
"""

from __future__ import annotations

import io
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.media.audio import for_clip, read_audio
from ltx2_two_stage.ltx2_core.media.image import load_image
from PIL import Image, ImageCms

SOUNDS = {"wav": "pcm_s16le", "mp3": "mp3", "mkv": "aac", "mp4": "aac", "flac": "flac", "ogg": "libopus"}
PICTURES = {"png": "P", "tif": "F", "jpg": "CMYK", "gif": "P", "webp": "RGBA"}
NUMBERS = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x00\x00\x80")


def sound_file(ending: str) -> bytes:
    """A quarter of a second of a sine."""
    buffer, rate = io.BytesIO(), 48000
    wave = (0.5 * np.sin(np.arange(12000) * 0.05)).astype(np.float32)
    formats = {"mkv": "matroska", "tif": "tiff"}
    with av.open(buffer, "w", format=formats.get(ending, ending)) as container:
        stream = container.add_stream(SOUNDS[ending], rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([wave, -wave]), format="fltp", layout="stereo")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=rate)
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        for part in fifo.read_many(960, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def picture_file(ending: str) -> bytes:
    """A gradient of 48 x 32 pixels, with a colour profile where the format has one."""
    rows, columns = np.mgrid[0:32, 0:48]
    colours = np.stack([rows * 8, columns * 5, rows + columns, 255 - rows], -1).astype(np.uint8)
    image = Image.fromarray(colours)
    mode = PICTURES[ending]
    image = image.convert("RGB").convert("L").convert(mode) if mode == "F" else image.convert("RGB").convert(mode)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    extra = {"icc_profile": profile} if ending in ("png", "webp") else {}
    image.save(buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(ending, ending), **extra)
    return buffer.getvalue()


def originals() -> dict[str, bytes]:
    """A small file of every kind, by its ending."""
    return {name: sound_file(name) for name in SOUNDS} | {name: picture_file(name) for name in PICTURES}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with one to four changes, most of them in its head."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(changed), 200) if chance.random() < 0.6 else len(changed))
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                number = chance.choice(NUMBERS)
                changed[at : at + len(number)] = number
            case 2:
                del changed[at : at + chance.randint(1, 64)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randint(1, 16))
            case _:
                del changed[max(at, 1) :]
        if not changed:
            return b""
    return bytes(changed)


def attempt(path: Path) -> str:
    """Reads a file as a run does: "error" for a clear one, else "result"."""
    try:
        if path.suffix[1:] in SOUNDS:
            sound = for_clip(read_audio(path, 5.0), 1.0).waveform
            assert sound.shape[:2] == (1, 2)
        else:
            assert load_image(path).shape[2] == 3
    except SettingError as error:
        assert str(path) in str(error) or error.setting == "audio"
        return "error"
    return "result"


def outcomes(count: int, folder: Path, seed: int = 0) -> Iterator[tuple[str, str, float]]:
    """(ending, outcome, processor seconds) of so many mutated files, the kinds in turn."""
    chance, files = random.Random(seed), list(originals().items())
    for index in range(count):
        ending, data = files[index % len(files)]
        path = folder / f"mutated-{index}.{ending}"
        path.write_bytes(mutated(data, chance))
        begun = time.process_time()
        outcome = attempt(path)
        yield ending, outcome, time.process_time() - begun
        path.unlink()


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = list(outcomes(count, Path(folder)))
    counted = Counter((ending, outcome) for ending, outcome, _ in found)
    for (ending, outcome), times in sorted(counted.items()):
        sys.stdout.write(f"{ending:5} {outcome:7} {times}\n")
    slowest = max(found, key=lambda row: row[2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(f"slowest: {slowest[0]}, {slowest[2]:.2f} s; peak memory {peak:.2f} GB\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
