"""A watch for whatever would make the host wait for a GPU, that works on a machine without one."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that read a number back, or whose result's size depends on numbers
_READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "unique", "masked_select", "lift_fresh")
_CALLS = {
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.cpu,
    torch.Tensor.cuda,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
    torch.Tensor.__contains__,
}


class _Dispatched(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        moves = "_to_copy" in name and kwargs.get("device") is not None
        by_mask = name.startswith("aten.index") and any(
            i is not None and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if moves or by_mask or any(part in name for part in _READING):
            self.seen.append(name)
        return func(*args, **kwargs)


class _Called(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_device = func is torch.Tensor.to and (
            "device" in kwargs or any(isinstance(a, (str, torch.device, torch.Tensor)) for a in args[1:])
        )
        if to_device or func in _CALLS:
            self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)


class HostWaits:
    """Notes in ``seen`` every operation that reads a tensor's numbers on the host, makes a tensor of host numbers or
    moves one between devices: on a GPU the host would wait at each. What only runs on the device is not noted."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._modes = (_Dispatched(self.seen), _Called(self.seen))

    def __enter__(self) -> HostWaits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)
