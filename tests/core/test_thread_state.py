"""Nothing that loads or runs a model changes what other threads of the process see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.lora import LoRAFile, inject
from ltx2_two_stage.ltx2_core.models.meta_device import OnMeta
from ltx2_two_stage.ltx2_core.models.repeatable import RepeatableConvolutions
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

LAYERS = 6
ROOT = Path(__file__).resolve().parents[2]


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(LAYERS))).requires_grad_(False)


@pytest.fixture
def lora(tmp_path: Path) -> LoRAFile:
    names = [f"{number}.lora_{end}.weight" for number in range(LAYERS) for end in "AB"]
    save_file({name: torch.ones(4, 4) for name in names}, tmp_path / "lora.safetensors")
    return LoRAFile.open(tmp_path / "lora.safetensors", "lora")


def test_modules_of_other_threads_keep_their_weights_while_a_lora_is_injected(lora: LoRAFile) -> None:
    register, buffer = nn.Module.register_parameter, nn.Module.register_buffer
    begun, done, failures = threading.Event(), threading.Event(), list[str]()

    def build() -> None:
        while not done.is_set():
            layer = nn.Linear(3, 2)
            if layer.weight.is_meta or nn.Module.register_parameter is not register:
                failures.append("a layer of another thread has no weights")
                return
            begun.set()
            time.sleep(0.0002)

    def adapt() -> None:
        begun.wait(60)
        for _ in range(4):
            inject(model(), [("one", lora), ("two", lora)])

    builders = [threading.Thread(target=build) for _ in range(2)]
    injectors = [threading.Thread(target=adapt) for _ in range(2)]
    for thread in (*builders, *injectors):
        thread.start()
    for thread in injectors:
        thread.join()
    done.set()
    for thread in builders:
        thread.join()
    assert not failures
    assert nn.Module.register_parameter is register and nn.Module.register_buffer is buffer
    assert not nn.Linear(3, 2).weight.is_meta


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "meta": OnMeta,
    "convolutions": RepeatableConvolutions,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_a_mode_is_one_threads_own_in_whatever_order_threads_leave(
    mode: Callable[[], AbstractContextManager[object]],
) -> None:
    """Switches that put back what they found are left on where the first to come is the first to leave."""
    inside, leave = threading.Event(), threading.Event()
    seen: list[object] = []

    def switches() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return (torch.utils._device.CURRENT_DEVICE, cudnn.deterministic, cudnn.benchmark, torch.get_default_dtype())

    def stay() -> None:
        with mode():
            inside.set()
            leave.wait(60)

    before = switches()
    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(60)
    seen.append(nn.Linear(2, 2).weight.device.type)
    with mode():
        seen.append(switches())
        leave.set()
        thread.join()
    assert seen == ["cpu", before] and switches() == before
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_on_meta_nothing_is_allocated_or_drawn() -> None:
    state = torch.get_rng_state()
    with OnMeta():
        module = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 3), nn.LayerNorm(4), nn.Embedding(3, 2))
        module.register_buffer("table", torch.arange(3) * torch.ones(3))
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x, w, b: F.conv1d(x, w, b, padding=2, dilation=2), (4, 3, 3)),
        (lambda x, w, b: F.conv1d(x, w, b, stride=2), (4, 3, 3)),
        (lambda x, w, _b: F.conv2d(x.unsqueeze(2), w.unsqueeze(2), None, padding=(0, 1), dilation=(1, 1)), (4, 3, 3)),
        (lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, padding=1), (3, 4, 4)),
        (lambda x, w, _b: F.conv_transpose1d(x, w[:, :1], None, stride=2, groups=3), (3, 4, 4)),
    ],
    ids=["dilated", "stride", "2-d", "transposed", "groups"],
)
def test_repeatable_convolutions_are_the_same_ones(
    call: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((2, 3, 9), shape, (4,)))
    expected = call(x, weight, bias)
    with RepeatableConvolutions():
        found = call(x, weight, bias)
    assert torch.equal(found, expected)


# What changes the whole process, and has a form that does not
GLOBAL = (
    "low_cpu_mem_usage",
    "init_empty_weights",
    "sdpa_kernel(",
    "cudnn.deterministic =",
    "cudnn.benchmark =",
    'torch.device("meta"):',
    "set_default_dtype",
    "set_default_device",
    "torch.manual_seed",
    "use_deterministic_algorithms",
    "catch_warnings",
    "redirect_stdout",
    "os.chdir",
)


def test_no_code_of_the_package_calls_what_changes_the_process() -> None:
    files = [path for folder in ("ltx2_core", "device_manager", "nodes") for path in (ROOT / folder).rglob("*.py")]
    texts = {path: "".join(part for part in path.read_text("utf-8").split('"""')[::2]) for path in files}
    lines = [line for text in texts.values() for line in text.splitlines() if not line.strip().startswith("#")]
    assert not [line for line in lines if any(call in line for call in GLOBAL)]
