"""A watch for operations that wait for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ltx2_two_stage.device_manager.switchable import SwitchableModule
from torch import Tensor


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def switch_without_waiting(switchable: SwitchableModule, x: Tensor, adapter: str) -> None:
    """From the third time on, two stages and the switch between them leave the host free."""

    def once() -> None:
        with torch.inference_mode(), switchable.use({adapter: 0.0}) as module:
            module(x)
            switchable.prefetch({adapter: 1.0})
            module(x)
        with torch.inference_mode(), switchable.use({adapter: 1.0}) as module:
            module(x)

    once()
    once()
    with waiting_is_an_error():
        once()
