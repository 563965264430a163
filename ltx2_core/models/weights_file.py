"""A safetensors file of a model, whose weights may be in fp8."""

from __future__ import annotations

from functools import cached_property

from ..files.safetensors_file import SafetensorsFile
from .scaled_weights import ScaledWeights, ScaledWeightsError


class WeightsFile(SafetensorsFile):
    """A file that holds a model, or a part of one."""

    @cached_property
    def scaled(self) -> ScaledWeights:
        """The fp8 tensors.

        Raises:
            CheckpointError: weights are quantised in another way, or scales and markers do not fit the weights.
        """
        try:
            return ScaledWeights.find(self.tensors, self.metadata, self.read_bytes)
        except ScaledWeightsError as error:
            raise self.error(error.problem, error.fix) from error
