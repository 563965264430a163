"""Errors that users read. Each names the setting, its value and what to do about it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

from .plain_text import LONGEST_LINE, plain


class LTX2Error(Exception):
    """Base of every error that this package raises on purpose. Its text is cleaned here (:func:`.plain_text.plain`)."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Shown before the message; in ComfyUI the package's own name begins with the path of its folder
        cls.__module__ = "ltx2"


class SettingError(LTX2Error, ValueError):
    """A setting has a value that cannot work.

    Args:
        setting: name of the setting as the user typed or sees it (``width``, ``--image``).
        value: the offending value; a path is shown as text.
        problem: what is wrong with it, as the rest of a sentence ("must be a multiple of 64").
        fix: what to do instead, as a full sentence.
    """

    def __init__(self, setting: str, value: Any, problem: str, fix: str) -> None:
        value = str(value) if isinstance(value, PurePath) else value
        self.setting, self.value, self.problem, self.fix = setting, value, problem, fix
        super().__init__(f"{setting} = {_shown(value)}: {problem}. {fix}")


class ConfigError(LTX2Error, ValueError):
    """A model description in a file's metadata is missing a key, or holds one that is not supported."""

    def __init__(self, key: str, value: Any, problem: str, fix: str) -> None:
        self.key, self.value, self.problem, self.fix = key, value, problem, fix
        super().__init__(f"config key {key} = {_shown(value)}: {problem}. {fix}")


class CheckpointError(LTX2Error):
    """A file is missing, truncated, of another format or of another model."""

    def __init__(self, setting: str, path: Any, problem: str, fix: str) -> None:
        self.setting, self.path, self.problem, self.fix = setting, path, problem, fix
        super().__init__(f"{setting} = {str(path)!r}: {problem}. {fix}")


class OutputError(LTX2Error, OSError):
    """Writing a result failed; nothing half-written is left behind."""

    def __init__(self, setting: str, path: Any, problem: str, fix: str) -> None:
        self.setting, self.path, self.problem, self.fix = setting, path, problem, fix
        super().__init__(f"{setting} = {str(path)!r}: {problem}. {fix}")

    def __str__(self) -> str:
        return str(self.args[0])


class DeviceMemoryError(LTX2Error, RuntimeError):
    """The device, or the machine, has too little memory for what was asked, in every placement that there is.

    Args:
        message: the whole text.
        memory: which one ran out: the device's, or the host's (RAM).
        problem: what the allocator said.
    """

    def __init__(self, message: str, memory: Literal["device", "host"] = "device", problem: str = "") -> None:
        self.memory, self.problem = memory, problem
        super().__init__(message)


class NotFiniteError(LTX2Error, ArithmeticError):
    """A stage made numbers that are none: NaN or infinity, which would be a black, grey or silent clip.

    Args:
        stage: which stage, in words.
        what: what holds such numbers.
        cause: what makes them, and what to do, as full sentences.
    """

    def __init__(self, stage: str, what: str, cause: str) -> None:
        self.stage, self.what, self.cause = stage, what, cause
        super().__init__(f"{stage}: {what} holds values that are not finite (NaN or infinity). {cause}")


# What allocators write where the error's type says nothing: CUDA's and HIP's runtime and driver, cudaMallocAsync, the
# libraries' handles and workspaces, Metal, Level Zero, DirectML
_NO_DEVICE_MEMORY = re.compile(
    r"(cuda|hip|xpu|mps|triton|driver)\b.{0,60}out of memory|allocation on device|error_?out_?of_?memory"
    r"|errormemoryallocation|out_of_device_memory|not enough gpu video memory|invalid buffer size"
    r"|cu[a-z]+_status_(alloc_failed|internal_error_device_allocation_failed)|(cu|hip)[a-z]+_alloc_failed"
    r"|(hip|roc)[a-z]+_status_alloc_failed|cusparse_status_insufficient_resources",
    re.IGNORECASE | re.DOTALL,
)
# torch's allocator on the CPU, C++, memory maps on Linux and Windows, page-locked memory
_NO_HOST_MEMORY = re.compile(
    r"alloc_cpu\.cpp|defaultcpuallocator|(cannot|can't|unable to) allocate memory|not enough memory: you tried"
    r"|std::bad_alloc|paging file is too small|\(os error (12|1455)\)"
    r"|cudnn_status_internal_error_host_allocation_failed"
    r"|out_of_host_memory|(cuda|hip)_?(hostalloc|mallochost|hostregister|hostmalloc)|host_?allocator",
    re.IGNORECASE | re.DOTALL,
)
_NONE: Mapping[str, str] = MappingProxyType({})
_OUT_OF_PAGES = frozenset({errno.ENOMEM, 1455})  # the second is Windows': the paging file is too small


def short_of_memory(error: BaseException) -> Literal["device", "host"] | None:
    """Which memory has run out, by what an error says; None for an error of another kind."""
    if isinstance(error, LTX2Error):
        return None
    if isinstance(error, MemoryError):  # NumPy's and PyAV's too
        return "host"
    if isinstance(error, OSError):
        return "host" if {error.errno, getattr(error, "winerror", None)} & _OUT_OF_PAGES else None
    kinds, text = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if not kinds & {"RuntimeError", "SafetensorError"}:
        return None
    if _NO_HOST_MEMORY.search(text):  # first: CUDA says "out of memory" of page-locked memory too
        return "host"
    return "device" if "OutOfMemoryError" in kinds or _NO_DEVICE_MEMORY.search(text) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, torch or a CUDA library says that some memory has run out."""
    return short_of_memory(error) is not None


def memory_error(error: BaseException, mode: str = "", lightest: Mapping[str, str] = _NONE) -> DeviceMemoryError:
    """What the user reads where :func:`is_out_of_memory`.

    Args:
        mode: the device mode, or those that were tried; empty where none is known.
        lightest: names of the device modes that take the least memory, see :class:`~.protocols.Residency`.
    """
    where, text = f" (device mode {mode})" if mode else "", _memory_problem(error)
    smaller = "Choose a smaller width, height or number of frames"
    if short_of_memory(error) == "host":
        fix = f"{smaller}, close other programs, or add RAM or swap space.{_one_copy(mode, lightest.get('host'))}"
        return DeviceMemoryError(f"the machine ran out of memory (RAM){where}: {text}. {fix}", "host", text)
    fix = smaller + _smaller_mode(mode, lightest.get("device"))
    return DeviceMemoryError(f"the device ran out of memory{where}: {text}. {fix}", "device", text)


def _one_copy(mode: str, lightest: str | None) -> str:
    if not mode or lightest is None or lightest in mode:
        return ""
    return f" On a CPU, device-mode {lightest} keeps one copy of the weights."


def _smaller_mode(mode: str, lightest: str | None) -> str:
    if lightest is None or lightest in mode:
        return ", or close other programs."
    return f", close other programs, or try device-mode {lightest}."


@contextmanager
def memory_errors(mode: str = "", lightest: Mapping[str, str] = _NONE) -> Iterator[None]:
    """Turns an error that says that memory ran out into :class:`DeviceMemoryError`.

    Args:
        mode, lightest: as for :func:`memory_error`.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(error, mode, lightest) from error


def _memory_problem(error: BaseException) -> str:
    """The first sentence of an error that says how much was asked for."""
    text = " ".join(str(error).split())
    if (asked := re.search(r"allocate (\d+) bytes", text)) is not None and len(asked[1]) < 20:
        return f"{int(asked[1]) / 1e9:.2f} GB could not be allocated"
    first = text.split(". ", 1)[0].rstrip(".")
    return plain(first, LONGEST_LINE) if first else "an allocation failed"


def _shown(value: Any) -> str:
    """A value as Python writes it, cut to a line; a number of more digits than Python writes is described."""
    try:
        return plain(repr(value), LONGEST_LINE)
    except ValueError:
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
