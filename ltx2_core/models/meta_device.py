"""Modules without memory, made without changing anything that other threads see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

__all__ = ["OnMeta"]

# What modules make their parameters and buffers with
_CREATORS = frozenset(
    {
        torch.arange,
        torch.empty,
        torch.empty_strided,
        torch.eye,
        torch.full,
        torch.hann_window,
        torch.kaiser_window,
        torch.linspace,
        torch.logspace,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.scalar_tensor,
        torch.tensor,
        torch.as_tensor,
        torch.asarray,
        torch.zeros,
    }
)
# How layers begin; there is nothing to write to
_FILLERS = frozenset({init.constant_, init.kaiming_uniform_, init.normal_, init.uniform_})


class OnMeta(TorchFunctionMode):
    """``with OnMeta():`` makes new tensors on the meta device, in this thread alone.

    ``with torch.device("meta")`` notes the device in a global of its module, which two threads that leave in another
    order than they came leave at meta for the whole process. ``peft`` and ``accelerate`` replace
    ``nn.Module.register_parameter`` for every thread. The stack of these modes is each thread's own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _CREATORS and options.get("device") is None:
            options["device"] = "meta"
        elif func in _FILLERS:
            return options.get("tensor", *args[:1])
        return func(*args, **options)
