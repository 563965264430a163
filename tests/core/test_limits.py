"""The table of bounds."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.limits import LIMITS, MOST_TOKENS, checked, checked_clip
from ltx2_two_stage.ltx2_core.stages.validate import check_prompt, check_sigmas, check_size, check_text

SCALE = (8, 32, 32)
NO_NUMBERS = {
    "text": "768",
    "truth": True,
    "nothing": None,
    "list": [1],
    "mapping": {},
    "complex": 1j,
    "tensor": torch.tensor(1),
    "not a number": math.nan,
    "infinity": math.inf,
    "numpy's infinity": np.float32("-inf"),
    "400 digits": 10**400,
    "5000 digits": 10**5000,
    "minus 400 digits": -(10**400),
}


@pytest.mark.parametrize("name", LIMITS)
def test_bounds_are_allowed_and_what_is_beyond_is_not(name: str) -> None:
    limit = LIMITS[name]
    kind = int if limit.whole else float
    for value in (limit.least, limit.most):
        assert checked(name, kind(value)) == value
        assert type(checked(name, (np.float64 if not limit.whole else np.uint64 if value >= 0 else np.int64)(value)))
    step: float = 1 if limit.whole else 0.001
    for value in (limit.least - step, limit.most + step):
        with pytest.raises(SettingError, match=rf"^{name} = .* must be .* between .*\. ."):
            checked(name, kind(value))


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_no_number_of_this_kind(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match="between") as caught:
        checked(name, value, "my setting")
    assert caught.value.setting == "my setting" and len(str(caught.value)) < 600


def test_fractions_do_not_count_things() -> None:
    for value in (768.5, 768.0, Fraction(1536, 2) + Fraction(1, 3)):
        with pytest.raises(SettingError, match=r"frames = .*whole number"):
            checked("frames", value)
    assert checked("fps", 24) == 24 and checked("fps", Fraction(24000, 1001)) == pytest.approx(23.976, abs=1e-3)


@pytest.mark.parametrize("fps", [1e-320, 5e-324, 1e-9, 0.0, -0.0, 1e308, 240.01, 10**400, True, "24"])
def test_rates_that_are_none(fps: Any) -> None:
    with pytest.raises(SettingError, match="fps = "):
        check_size(768, 512, 9, fps, 2, SCALE)


@pytest.mark.parametrize(
    ("width", "height", "frames", "fits"),
    [
        (3840, 2176, 505, True),
        (1920, 1088, 1441, True),
        (8192, 8192, 57, True),
        (8192, 8192, 73, False),
        (8192, 8192, 8193, False),
        (64, 64, 8193, True),
        (3840, 2176, 521, False),
    ],
)
def test_a_clip_is_bounded_as_a_whole(width: int, height: int, frames: int, fits: bool) -> None:
    if fits:
        checked_clip(width, height, frames, SCALE)
        return
    with pytest.raises(SettingError, match=rf"{width}x{height}x{frames}.*{MOST_TOKENS:,}"):
        check_size(width, height, frames, 24.0, 2, SCALE)


@pytest.mark.parametrize("text", ["half \ud83d", "\udcff", "a\0b", 7, None, b"bytes", ["a"]])
def test_texts_that_are_none(text: Any) -> None:
    for check in (lambda: check_text("negative-prompt", text), lambda: check_prompt(text)):
        with pytest.raises(SettingError, match="prompt = "):
            check()


def test_as_many_noise_levels_as_steps() -> None:
    many = tuple(1 - step / 1000 for step in range(1001))
    check_sigmas("sigmas", many, "euler")
    with pytest.raises(SettingError, match="1002 noise levels"):
        check_sigmas("sigmas", (1.0, *(0.9999 - step / 1001 for step in range(1000)), 0.0), "euler")
