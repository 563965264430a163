"""What a finished run tells: the file, the clip, and what each stage cost."""

from __future__ import annotations

from pathlib import Path

from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioClip, RunReport

_GIB = 1 << 30


def summary(path: Path, request: GenerationRequest, audio: AudioClip, report: RunReport) -> str:
    """Some lines of text, the first of them the file and the last without a line end."""
    clip = f"{request.width}x{request.height}, {request.frames} frames at {request.fps:g} fps"
    sound = f"sound {audio.waveform.shape[-1] / audio.sampling_rate:.2f} s at {audio.sampling_rate} Hz"
    lines = [
        str(path),
        f"{clip}, {request.frames / request.fps:.2f} s; {sound}; seed {request.seed}",
        f"{report.recipe}, rules {report.revision}, on {report.device}, {report.mode}: {report.mode_reason}",
        f"{'stage':<12}{'seconds':>9}{'peak GiB':>10}{'to device':>11}{'to host':>9}",
    ]
    for stage in report.stages:
        moved = f"{stage.h2d_bytes / _GIB:>11.2f}{stage.d2h_bytes / _GIB:>9.2f}"
        lines.append(f"{stage.name:<12}{stage.ms / 1000:>9.1f}{stage.peak_bytes / _GIB:>10.2f}{moved}")
    total = sum(stage.ms for stage in report.stages) / 1000
    peak = max((stage.peak_bytes for stage in report.stages), default=0) / _GIB
    lines.append(f"{'all':<12}{total:>9.1f}{peak:>10.2f}")
    return "\n".join(lines)
