"""What makes numbers that are not finite, by stage: sentences that name the files and settings of the run."""

from __future__ import annotations

from pathlib import PurePath

import torch

from ..protocols import Models
from ..request import GenerationRequest
from .plan import StagePlan

_HALF = "float16 overflows above 65504: choose dtype bfloat16 or float32."
_AGAIN = "Download it again, or compare its SHA-256 with the one on its page."


def of_files(models: Models, *roles: str) -> str:
    """The files of these roles may be damaged; those that were not given are part of the checkpoint.

    Args:
        roles: as in ``Models.file_names``, the likeliest first.
    """
    given = dict.fromkeys(_file(models, role) for role in roles if role in models.file_names)
    files = " or ".join(given or [_file(models, "checkpoint")])
    return _with_dtype(models, f"The likely cause is a damaged file: {files}. {_AGAIN}")


def of_denoising(models: Models, request: GenerationRequest, plan: StagePlan) -> str:
    """The transformer's file, a LoRA, its strength, the guidance, the dtype."""
    strengths = models.adapter_strengths(plan.phase, request.recipe.distilled_strength)
    loras = {role: PurePath(name).name for role, name in models.file_names.items() if "lora" in role}
    causes = [f"a damaged file ({_file(models, 'checkpoint')})"]
    if any(strengths.values()):
        used = ", ".join(f"{strength:g}" for strength in strengths.values() if strength)
        causes.append(f"a LoRA ({', '.join(loras.values())}) that is damaged or too strong ({used})")
    video, audio = plan.guidance.video, plan.guidance.audio
    if video.cfg != 1 or audio.cfg != 1:
        causes.append(f"a cfg that is too high ({video.cfg:g} for video, {audio.cfg:g} for audio)")
    fix = "Try without LoRAs and with the preset's own numbers; if that fails too, download the checkpoint again."
    return _with_dtype(models, f"Likely causes: {', or '.join(causes)}. {fix}")


def _file(models: Models, role: str) -> str:
    """A file's name; weights that come from no file are called by their role."""
    return PurePath(models.file_names.get(role, f"the {role}")).name


def of_input(name: str) -> str:
    """What another program or node has made."""
    return f"It came so from where it was made: make the {name} anew, or look at the node or program before."


def _with_dtype(models: Models, sentences: str) -> str:
    return f"{sentences} {_HALF}" if models.dtype is torch.float16 else sentences
