"""What stands between the host and every node: inputs are checked on the way in, texts of errors on the way out.

The host checks bounds only of inputs that a node's ``validate_inputs`` does not take, never of what comes over a link,
and lets values that are not finite pass. Errors of libraries can hold text of a file, which some of the host's pages
show as markup.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.limits import LIMITS
from ..ltx2_core.plain_text import is_plain
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.stages.validate import check_text
from ..ltx2_core.types import ImageCondition
from . import host
from .handle import PipelineHandle
from .sockets import ImagesSocket, PipelineSocket, RecipeSocket

# Method -> whether it is given all inputs of a run
_METHODS: Mapping[str, bool] = {"execute": True, "check_lazy_status": True, "fingerprint_inputs": False}


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, its methods with the checks around them. Their signatures, which the host looks at, stay."""
    for name, checks in _METHODS.items():
        if name in vars(node):
            setattr(node, name, _guarded_method(vars(node)[name].__func__, checks))
    own = vars(node).get("validate_inputs")
    method = _accepting(node) if own is None else own.__func__
    if method is not None:
        setattr(node, "validate_inputs", _guarded_validation(method))  # noqa: B010 - a method, to mypy
    return node


def _accepting(node: type[io.ComfyNode]) -> Callable[..., bool] | None:
    """A validation that has nothing to add to the guard's, for a node that has none; None where nothing is written out.

    It takes one input, as the host makes an error for each that a validation takes.
    """
    # Of a list the host knows the names, and asks no more where a validation takes it
    written = [w.id for w in node.define_schema().inputs if w.io_type in _CHECKS and w.io_type != "COMBO"]
    if not written:
        return None

    def accept(_cls: type[io.ComfyNode], **values: Any) -> bool:
        return True

    kind = inspect.Parameter
    parameters = [kind("cls", kind.POSITIONAL_OR_KEYWORD), kind(written[0], kind.POSITIONAL_OR_KEYWORD, default=None)]
    setattr(accept, "__signature__", inspect.Signature(parameters))  # noqa: B010
    return accept


def _guarded_method(method: Callable[..., Any], checks: bool) -> Any:
    @functools.wraps(method)
    def guard(cls: type[io.ComfyNode], /, *args: Any, **values: Any) -> Any:
        with for_the_page():
            if checks:
                with host.told_on_the_node():
                    check_values(cls.define_schema().inputs, values)
            return method(cls, *args, **values)

    return classmethod(guard)


def _guarded_validation(method: Callable[..., Any]) -> Any:
    def refused(cls: type[io.ComfyNode]) -> str | None:
        try:
            check_literals(cls.define_schema().inputs, host.queued_literals(cls))
        except SettingError as error:
            return host.for_page(error)
        return None

    def answered(answer: bool | str) -> bool | str:
        return host.for_page(answer) if isinstance(answer, str) else answer

    @functools.wraps(method)
    def guard(cls: type[io.ComfyNode], /, **values: Any) -> bool | str:
        with for_the_page():
            return refused(cls) or answered(method(cls, **values))

    @functools.wraps(method)
    async def guard_later(cls: type[io.ComfyNode], /, **values: Any) -> bool | str:
        with for_the_page():
            return refused(cls) or answered(await method(cls, **values))

    found: Any = guard_later if inspect.iscoroutinefunction(method) else guard
    found.__signature__ = inspect.signature(method)  # the host asks which inputs it takes
    return classmethod(found)


@contextmanager
def for_the_page() -> Iterator[None]:
    """Errors inside leave with a text that a page and a terminal can show, and paths below the host's folders."""
    try:
        yield
    except LTX2Error as error:
        error.args = (host.for_page(error),)
        if not is_plain(error):
            error.__cause__, error.__suppress_context__ = None, True
        raise
    except Exception as error:
        if is_plain(error) and host.for_page(error) == str(error):
            raise
        cleaned = LTX2Error(host.for_page(f"{type(error).__name__}: {error}"))
        raise cleaned.with_traceback(error.__traceback__) from None


def check_values(inputs: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Checks what a node was given, over links too, by what it declares.

    Raises:
        SettingError: a number that is none, not finite or out of bounds; a text that is none or cannot be encoded;
            a value where only another node's output can be.
    """
    for widget in inputs:
        if widget.id not in values:
            continue
        value = values[widget.id]
        if value is None and (widget.optional or getattr(widget, "lazy", False)):
            continue  # not connected, or not wanted yet
        if (check := _CHECKS.get(widget.io_type)) is not None:
            check(widget, value)
        elif not _LINKED.get(widget.io_type, _anything)(value):
            raise _not_linked(widget, value)


def check_literals(inputs: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Checks what a queued workflow has written out, before the host makes it the type that it should have.

    The host turns 768.5 into 768, true into 1, and nothing at all into the text "None".
    """
    for widget in inputs:
        if widget.id not in values:
            continue
        value = values[widget.id]
        if widget.io_type in ("INT", "FLOAT"):
            value = _host_number(widget.io_type, value)
        if (check := _CHECKS.get(widget.io_type)) is not None:
            check(widget, value)
        elif widget.io_type in _LINKED and not (value is None and widget.optional):
            raise _not_linked(widget, value)


def _not_linked(widget: Any, value: object) -> SettingError:
    problem = f"is nothing of the type {widget.io_type}"
    return SettingError(widget.id, value, problem, "Connect the output of another node to it.")


def _host_number(kind: str, value: Any) -> Any:
    """The number that the host takes a literal for, where it means the same."""
    try:
        if isinstance(value, str):
            return int(value) if kind == "INT" else float(value)
        if kind == "INT" and isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        pass
    return value


def _check_number(widget: Any, value: Any) -> None:
    whole = widget.io_type == "INT"
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = real and (isinstance(value, numbers.Integral) or (not whole and math.isfinite(value)))
    if not fits or not widget.min <= value <= widget.max:
        row = LIMITS.get(widget.id.replace("_", "-"))
        if row is not None and (widget.min > 0 or widget.min == row.least):
            raise SettingError(widget.id, value, row.words, row.fix)
        # The smallest value of the widget stands for the preset's own
        problem = f"must be a {'whole ' if whole else ''}number between {widget.min} and {widget.max}"
        raise SettingError(widget.id, value, problem, f"The default is {widget.default}.")


def _check_choice(widget: Any, value: Any) -> None:
    if not isinstance(value, str):
        raise SettingError(widget.id, value, "must be one of the listed names", "Choose it from the node's list.")
    check_text(widget.id, value)


def _check_switch(widget: Any, value: Any) -> None:
    if not isinstance(value, bool):
        raise SettingError(widget.id, value, "must be true or false", f"The default is {widget.default}.")


_CHECKS: Mapping[str, Callable[[Any, Any], None]] = {
    "INT": _check_number,
    "FLOAT": _check_number,
    "STRING": lambda widget, value: check_text(widget.id, value),
    "COMBO": _check_choice,
    "BOOLEAN": _check_switch,
}


def _anything(_value: object) -> bool:
    return True


def _is_latent(value: object) -> bool:
    return isinstance(value, Mapping) and hasattr(value.get("samples"), "unbind")


def _is_conditioning(value: object) -> bool:
    pairs = isinstance(value, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in value)
    return pairs and all(isinstance(tensor, Tensor) and isinstance(more, Mapping) for tensor, more in _pairs(value))


def _pairs(value: object) -> list[tuple[object, object]]:
    return [(pair[0], pair[1]) for pair in value] if isinstance(value, (list, tuple)) else []


def _is_audio(value: object) -> bool:
    """A sound that is None, as of a video without any, is for the node to name."""
    return isinstance(value, Mapping) and isinstance(value.get("waveform"), Tensor) and "sample_rate" in value


# By type, what comes over its links; other types are not looked at
_LINKED: Mapping[str, Callable[[object], bool]] = {
    PipelineSocket.io_type: lambda value: isinstance(value, PipelineHandle),
    ImagesSocket.io_type: lambda value: isinstance(value, tuple) and all(isinstance(v, ImageCondition) for v in value),
    RecipeSocket.io_type: lambda value: isinstance(value, RecipeChoice),
    "LATENT": _is_latent,
    "CONDITIONING": _is_conditioning,
    "IMAGE": lambda value: isinstance(value, Tensor) and value.ndim == 4,
    "AUDIO": _is_audio,
    "VAE": lambda value: hasattr(value, "decode"),
}
