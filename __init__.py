"""LTX-2 Two-Stage: video with sound from LTX-2 and LTX-2.3 in ComfyUI."""

from __future__ import annotations

import logging
from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """ComfyUI's V3 entry point. Imports nothing heavy before it is called."""
    from .nodes.host_version import check_host

    check_host()
    try:
        from .nodes.extension import TwoStageExtension
    except Exception:
        # ComfyUI prints only the message of an import error; the traceback tells which line to fix.
        logging.getLogger("ltx2").exception("LTX-2 Two-Stage could not be imported")
        raise
    return TwoStageExtension()
