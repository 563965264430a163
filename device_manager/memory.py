"""What memory there is: on the device for this process, on the host under the container's limit, and to page-lock."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

# Page-locked memory can be neither swapped nor reclaimed, so a share of what is available stays for everyone else: the
# file cache that reading a checkpoint needs, decoded frames (3 GB for 1920x1088x121 in float32) and the application
# itself. Windows lets a process lock about half of the memory and fails on more.
PINNED_SHARE = 0.45 if sys.platform == "win32" else 0.8


@dataclass(frozen=True)
class VRAM:
    """Device memory of this process, in bytes; all zero for a device without memory of its own.

    Attributes:
        total: what the device has, or the share of it that this process may take.
        free: what can still be allocated, torch's cached blocks included.
        held: what torch's tensors take now.
    """

    total: int
    free: int
    held: int


def vram(device: torch.device) -> VRAM:
    """The device's memory, within ``torch.cuda.set_per_process_memory_fraction`` where that was set."""
    if device.type != "cuda":
        return VRAM(0, 0, 0)
    free, total = torch.cuda.mem_get_info(device)
    held, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free += reserved - held
    limit = int(total * _memory_fraction(device))
    if limit < total:
        # torch counts its own reservations against the limit, and gives cached blocks back before it fails
        total, free = limit, min(free, max(0, limit - held))
    return VRAM(total, free, held)


def host_available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of host memory that this process can take: the machine's, or what its container leaves if that is less.

    Args:
        proc: where the process file system is mounted.
        cgroup: where the control groups are mounted.
    """
    meminfo = _fields(proc / "meminfo", ":")
    available = meminfo["MemAvailable"] * 1024 if "MemAvailable" in meminfo else _portable_available()
    return max(0, min([available, *(limit - used for limit, used in _cgroup_limits(proc, cgroup))]))


def host_total(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of host memory in all: the machine's, or its container's limit if that is less.

    Args:
        proc, cgroup: as for :func:`host_available`.
    """
    meminfo = _fields(proc / "meminfo", ":")
    total = meminfo["MemTotal"] * 1024 if "MemTotal" in meminfo else _portable_total()
    return min([total, *(limit for limit, _ in _cgroup_limits(proc, cgroup))])


def pinned_budget(host_available: int, limit: int | None = None) -> int:
    """Bytes that may be page-locked: ``PINNED_SHARE`` of what is available, and never more than the host application's.

    Args:
        host_available: bytes of host memory that can be taken.
        limit: the host application's own budget in bytes, None where it has none.
    """
    budget = int(max(0, host_available) * PINNED_SHARE)
    return budget if limit is None else min(budget, max(0, limit))


def _memory_fraction(device: torch.device) -> float:
    read = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # younger than the oldest torch we run on
    return 1.0 if read is None else float(read(device))


def _cgroup_limits(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """Each limit above this process, and what is used of it for good, in bytes."""
    for folder in _folders(cgroup, _cgroup_path(proc, "")):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
        used = _number(folder / "memory.current")
        cache = _fields(folder / "memory.stat").get("inactive_file", 0)
        yield from ((limit, used - cache) for limit in limits if limit is not None and used is not None)
    for folder in _folders(cgroup / "memory", _cgroup_path(proc, "memory")):
        limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
        cache = _fields(folder / "memory.stat").get("total_inactive_file", 0)
        if limit is not None and used is not None:
            yield limit, used - cache


def _cgroup_path(proc: Path, controller: str) -> str:
    """This process's group: the line of the controller (version 1), or the one without any (version 2)."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.strip("/")
    return ""


def _folders(root: Path, path: str) -> list[Path]:
    """The group's folder and all above it: each may have a limit. A container may see only the root."""
    folder = root / path
    below = [] if folder == root else [folder, *folder.parents[: len(folder.parents) - len(root.parents) - 1]]
    return [root, *below]


def _portable_available() -> int:
    """For systems without /proc."""
    if sys.platform == "win32":
        return _windows_memory()[1]
    names = os.sysconf_names
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * page
    # macOS tells only what is installed; half of it is what others usually leave
    return os.sysconf("SC_PHYS_PAGES") * page // 2 if "SC_PHYS_PAGES" in names else 0


def _portable_total() -> int:
    if sys.platform == "win32":
        return _windows_memory()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in os.sysconf_names else 0


def _windows_memory() -> tuple[int, int]:
    """Physical memory: all, and available."""
    if sys.platform != "win32":
        return 0, 0
    import ctypes

    # MEMORYSTATUSEX: two 32-bit numbers, its size and the load in percent, then seven 64-bit ones, of which the first
    # two are the physical memory
    status = (ctypes.c_ulonglong * 8)()
    status[0] = ctypes.sizeof(status)
    known = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return (int(status[1]), int(status[2])) if known else (0, 0)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", for anything else and for no file."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _fields(path: Path, separator: str | None = None) -> dict[str, int]:
    """Lines of a name and a number, with or without a unit."""
    fields = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(separator or " ")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name.strip()] = int(words[0])
    return fields


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
