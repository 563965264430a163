"""What a finished run tells: the file, the clip, and what each stage cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..device_manager.report import stage_table
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioClip, RunReport


def summary(path: Path, request: GenerationRequest, audio: AudioClip, report: RunReport) -> str:
    """Some lines of text, the first of them the file and the last without a line end."""
    clip = f"{request.width}x{request.height}, {request.frames} frames at {request.fps:g} fps"
    sound = f"sound {audio.waveform.shape[-1] / audio.sampling_rate:.2f} s at {audio.sampling_rate} Hz"
    lines = [
        str(path),
        f"{clip}, {request.frames / request.fps:.2f} s; {sound}; seed {request.seed}",
        f"{report.recipe}, rules {report.revision}, on {report.device}",
        stage_table([asdict(stage) for stage in report.stages], report.mode, report.mode_reason, report.notices),
    ]
    return "\n".join(lines)
