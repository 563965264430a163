"""Whether this ComfyUI is new enough, told before anything of it is used that older ones lack."""

from __future__ import annotations

import re

# The first with nested audio-video latents; pyproject.toml's requires-comfyui says the same to the registry
OLDEST = (0, 8, 0)
_UPDATE = "Update ComfyUI, or disable this node pack."


class HostTooOld(ImportError):
    """ComfyUI lacks what the nodes are made with. ComfyUI shows the message as it is."""


def check_host() -> None:
    """Compares ComfyUI's version with the oldest that works. A version that cannot be read is not refused.

    Raises:
        HostTooOld: it is older, or has no V3 API.
    """
    found = _found()
    needed = f"LTX-2 Two-Stage needs ComfyUI {'.'.join(map(str, OLDEST))} or newer"
    numbers = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", found or "")
    if numbers is not None and tuple(int(number or 0) for number in numbers.groups()) < OLDEST:
        raise HostTooOld(f"{needed}; this is {found}. {_UPDATE}")
    try:
        import comfy_api.latest  # noqa: F401 - only whether it is there
    except ImportError as error:
        this = f"this is {found}" if found else "this one's version is not known"
        raise HostTooOld(f"{needed}; {this}, and its V3 node API cannot be imported ({error}). {_UPDATE}") from error


def _found() -> str | None:
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    return str(__version__)
