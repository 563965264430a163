"""What Triton has compiled, launched by addresses; and how it compiles."""

from __future__ import annotations

from typing import Any

from triton.runtime import driver

# A product and a sum may be rounded once. Triton's default up to 3.9, which warns that it will change
OPTIONS = {"enable_fp_fusion": True}


def launch_compiled(kernel: Any, grid: tuple[int, ...], device: int, *arguments: Any) -> None:
    """Launches what Triton has compiled, with addresses for pointers, as Triton does when it has found it.

    Profilers' hooks are left out.
    """
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(device)
    kernel.run(x, y, z, stream, kernel.function, kernel.packed_metadata, None, None, None, *arguments)
