"""Memory numbers from made-up /proc and control groups, and from a made-up CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ltx2_two_stage.device_manager import memory
from ltx2_two_stage.device_manager.memory import VRAM, host_available, host_total, pinned_budget, vram

MIB = 1024**2
V1_UNLIMITED = "9223372036854771712"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def proc_files(available_mib: int, group: str = "0::/") -> dict[str, str]:
    return {
        "meminfo": f"MemTotal:  999999999 kB\nMemFree:  1 kB\nMemAvailable:  {available_mib * 1024} kB\nHugePages: 0\n",
        "self/cgroup": group + "\n",
    }


def v2(limit: str, used_mib: int, inactive_mib: int, folder: str = "", high: str = "max") -> dict[str, str]:
    stat = f"anon 1\nfile 2\nactive_file 3\ninactive_file {inactive_mib * MIB}\n"
    names = {"memory.max": limit, "memory.high": high, "memory.current": str(used_mib * MIB), "memory.stat": stat}
    return {folder + name: text + "\n" for name, text in names.items()}


def v1(limit: str, used_mib: int, inactive_mib: int, folder: str = "memory/") -> dict[str, str]:
    stat = f"inactive_file 7\ntotal_inactive_file {inactive_mib * MIB}\n"
    names = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": str(used_mib * MIB), "memory.stat": stat}
    return {folder + name: text + "\n" for name, text in names.items()}


@pytest.mark.parametrize(
    ("proc", "groups", "expected_mib"),
    [
        pytest.param(proc_files(900), {}, 900, id="no-groups"),
        pytest.param(proc_files(900), v2("max", 300, 0), 900, id="v2-no-limit"),
        pytest.param(proc_files(900), v2(str(500 * MIB), 300, 120), 320, id="v2-limit-with-file-cache"),
        pytest.param(proc_files(100), v2(str(500 * MIB), 300, 0), 100, id="v2-machine-has-less"),
        pytest.param(proc_files(900), v2("max", 300, 0, high=str(400 * MIB)), 100, id="v2-high"),
        pytest.param(proc_files(900), v2(str(500 * MIB), 600, 0), 0, id="v2-over-the-limit"),
        pytest.param(
            proc_files(900, "0::/user/job"),
            {**v2(str(700 * MIB), 100, 0, "user/job/"), **v2(str(500 * MIB), 200, 50, "user/")},
            350,
            id="v2-a-parent-is-tighter",
        ),
        pytest.param(
            proc_files(900, "0::/not/visible"), v2(str(500 * MIB), 300, 0), 200, id="v2-container-sees-the-root"
        ),
        pytest.param(proc_files(900, "3:cpu,cpuacct:/\n2:memory:/"), v1(str(500 * MIB), 300, 120), 320, id="v1-limit"),
        pytest.param(proc_files(900, "2:memory:/"), v1(V1_UNLIMITED, 300, 0), 900, id="v1-no-limit"),
        pytest.param(
            proc_files(900, "2:memory:/docker/a"),
            {**v1(V1_UNLIMITED, 800, 0), **v1(str(400 * MIB), 300, 10, "memory/docker/a/")},
            110,
            id="v1-own-group",
        ),
    ],
)
def test_host_available(tmp_path: Path, proc: dict[str, str], groups: dict[str, str], expected_mib: int) -> None:
    root, cgroup = written(tmp_path / "proc", proc), written(tmp_path / "cgroup", groups)
    assert host_available(root, cgroup) == expected_mib * MIB


@pytest.mark.parametrize(
    ("groups", "expected_mib"),
    [
        pytest.param({}, 1000, id="no-groups"),
        pytest.param(v2("max", 300, 0), 1000, id="v2-no-limit"),
        pytest.param(v2(str(500 * MIB), 300, 120), 500, id="v2-limit"),
        pytest.param(v2(str(2000 * MIB), 300, 120), 1000, id="v2-machine-has-less"),
        pytest.param(v2(str(500 * MIB), 300, 0, high=str(400 * MIB)), 400, id="v2-high"),
        pytest.param(v1(V1_UNLIMITED, 300, 0), 1000, id="v1-no-limit"),
        pytest.param(v1(str(600 * MIB), 300, 0), 600, id="v1-limit"),
    ],
)
def test_host_total(tmp_path: Path, groups: dict[str, str], expected_mib: int) -> None:
    files = {"meminfo": f"MemTotal:  {1000 * 1024} kB\nMemAvailable:  1 kB\n", "self/cgroup": "2:memory:/\n0::/\n"}
    root, cgroup = written(tmp_path / "proc", files), written(tmp_path / "cgroup", groups)
    assert host_total(root, cgroup) == expected_mib * MIB


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 10, "SC_PHYS_PAGES": 100}, 40960, id="free-pages"),
        pytest.param({"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}, 204800, id="macos-half-of-what-is-installed"),
        pytest.param({"SC_PAGE_SIZE": 4096}, 0, id="nothing-known"),
    ],
)
def test_host_available_without_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, int], expected: int
) -> None:
    monkeypatch.setattr(memory.os, "sysconf_names", values)
    monkeypatch.setattr(memory.os, "sysconf", values.__getitem__)
    assert host_available(tmp_path / "none", tmp_path / "none") == expected


def test_host_total_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}
    monkeypatch.setattr(memory.os, "sysconf_names", values)
    monkeypatch.setattr(memory.os, "sysconf", values.__getitem__)
    assert host_total(tmp_path / "none", tmp_path / "none") == 409600


def test_host_memory_here_is_positive() -> None:
    assert 0 < host_available() <= host_total()


@pytest.mark.parametrize(
    ("available", "limit", "expected"),
    [
        pytest.param(1000, None, int(1000 * memory.PINNED_SHARE), id="share"),
        pytest.param(1000, 300, 300, id="the-application-allows-less"),
        pytest.param(100, 300, int(100 * memory.PINNED_SHARE), id="the-application-allows-more"),
        pytest.param(1000, -1, 0, id="the-application-has-used-it-up"),
        pytest.param(-5, None, 0, id="nothing-available"),
    ],
)
def test_pinned_budget(available: int, limit: int | None, expected: int) -> None:
    assert pinned_budget(available, limit) == expected


@pytest.mark.parametrize(
    ("free", "reserved", "held", "fraction", "expected"),
    [
        pytest.param(60, 30, 10, 1.0, VRAM(total=100, free=80, held=10), id="cached-blocks-are-free"),
        pytest.param(60, 30, 10, 0.48, VRAM(total=48, free=38, held=10), id="capped"),
        pytest.param(5, 30, 10, 0.48, VRAM(total=48, free=25, held=10), id="capped-but-others-take-more"),
        pytest.param(20, 60, 60, 0.48, VRAM(total=48, free=0, held=60), id="capped-below-what-is-held"),
    ],
)
def test_vram(
    monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, held: int, fraction: float, expected: VRAM
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction, raising=False)
    assert vram(torch.device("cuda", 0)) == expected


def test_an_older_torch_knows_no_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction", raising=False)
    for name, value in {"mem_get_info": (60, 100), "memory_reserved": 0, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert vram(torch.device("cuda", 0)) == VRAM(total=100, free=60, held=0)


def test_the_cpu_has_no_vram() -> None:
    assert vram(torch.device("cpu")) == VRAM(0, 0, 0)
