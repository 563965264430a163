"""Acceptance of the models' licences from the page: the user's own act on this machine, never a value of a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.loading.licences import ENVIRONMENT, LICENCES, accept, missing_consent
from . import host

HOW = f"press the button of this node, or run ltx2 accept-licences (or start ComfyUI with {ENVIRONMENT}=yes)"


async def accept_licences(body: Mapping[str, Any]) -> host.Answer:
    """What the button of the node asks for, on this machine: {"accept": true}."""
    if body.get("accept") is not True:
        return 400, {"error": "accept must be true.", "fix": "Press the button of LTX-2 Download."}
    try:
        accept()
    except LTX2Error as error:
        return 409, {"error": str(error), "fix": HOW}
    return 200, {"missing": missing_consent(LICENCES)}


async def licences() -> host.Answer:
    """Which licences there are, where to read them, and which are not accepted yet."""
    return 200, {"licences": LICENCES, "missing": missing_consent(LICENCES)}
