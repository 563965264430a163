"""Headers of safetensors files, as the loading code names them."""

from __future__ import annotations

from ..models.storage.header import DTYPE_BITS, Header, TensorInfo, read_header

__all__ = ["DTYPE_BITS", "Header", "TensorInfo", "read_header"]
