"""The environment's choices of kernels."""

from __future__ import annotations

from ..kernels import attention, availability


def check_kernel_settings() -> None:
    """Raises :class:`SettingError` where a variable is no choice; without this, the first kernel would."""
    availability.check_setting()
    attention.check_setting()
