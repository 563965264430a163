"""A model file, as the loading code names it: the text encoder, which is a model, reads its files the same way."""

from __future__ import annotations

from ..models.storage.header import TensorInfo
from ..models.storage.safetensors_file import PLAIN_DTYPES, SafetensorsFile

__all__ = ["PLAIN_DTYPES", "SafetensorsFile", "TensorInfo"]
