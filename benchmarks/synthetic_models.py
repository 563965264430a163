"""Full-size models with random weights, made on the GPU.

Random weights say nothing of quality; they have the released models' shapes, dtypes and cost.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..ltx2_core.components import COMPONENTS, PARTS, weight_dtype
from ..ltx2_core.kernels.quantise import FP8, Quantised, quantise_rows
from ..ltx2_core.loading.lora import LoRAWeights, inject, linear_layers
from ..ltx2_core.loading.precision import quantisable
from ..ltx2_core.loading.synthetic import (
    Variant,
    fill_random_,
    full_size_config,
    full_size_upsampler_config,
    tiny_config,
    tiny_upsampler_config,
    upsampler_of,
)
from ..ltx2_core.models.audio_vae import AudioVAEConfig
from ..ltx2_core.models.scaled_linear import scale_layers
from ..ltx2_core.models.text.config import TextConfig
from ..ltx2_core.models.transformer.config import TransformerConfig
from ..ltx2_core.models.video_vae import VideoVAEConfig
from ..ltx2_core.recipes import UNKNOWN
from ..ltx2_core.types import AudioGeometry, Component, Phase, ScaleFactors

logger = logging.getLogger("ltx2.benchmarks")

PROMPT_TOKENS = 100  # an ordinary prompt
DISTILLED = "distilled"
LORA_RANK = 384  # of the official file, capped per layer at min(in, out)
LORA_STD = 0.01
# Weights are slices of one pool of normal numbers, each from another place: making 38 GB of new ones takes 20 s
POOL = 2**26
PRECISIONS = ("bf16", "fp8")
_SCALE = ".weight_scale"
GEMMA_LAYERS, GEMMA_WIDTH = 48, 3840
GEMMA_BYTES = 23_532_000_000
_GEMMA_12B: Mapping[str, Any] = {
    "vocab_size": 262208,
    "intermediate_size": 15360,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}
_GEMMA_TINY: Mapping[str, Any] = {
    "vocab_size": 1000,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@dataclass(frozen=True)
class _Tokens:
    ids: tuple[int, ...]
    truncated_from: int | None = None

    def tensor(self, device: torch.device) -> Tensor:
        return torch.tensor(self.ids, device=device)


class _Tokenizer:
    """Prompts of a fixed token count: random weights do not read."""

    def encode(self, text: str, max_tokens: int) -> _Tokens:  # noqa: ARG002 - a tokenizer's signature
        generator = torch.Generator().manual_seed(len(text))
        return _Tokens(tuple(torch.randint(4, 1000, (PROMPT_TOKENS,), generator=generator).tolist()))


class SyntheticModels:
    """Full-size models of one generation, random weights, bfloat16.

    Args:
        precision: of the transformer's large linear layers, one of :data:`PRECISIONS`. The fp8 weights are the bfloat16
            ones, quantised.
        tiny: sizes of a few MB instead of the released ones, which try the benchmarks' own code.
    """

    dtype = torch.bfloat16
    has_upsampler = has_distilled_lora = True
    notices = ()
    variant = UNKNOWN
    distilled_adapters: frozenset[str] = frozenset()
    user_adapters: Mapping[str, str] = MappingProxyType({})

    def __init__(self, generation: Variant, seed: int = 0, precision: str = "bf16", tiny: bool = False) -> None:
        config = tiny_config(generation) if tiny else full_size_config(generation)
        self.generation, self.seed, self.precision, self.tiny = generation, seed, precision, tiny
        self.metadata: Mapping[str, Any] = config
        self._maker = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._pools: dict[torch.device, Tensor] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        self._configs = {component: COMPONENTS[component].read(config, {}) for component in PARTS}
        self.transformer: TransformerConfig = self._configs[Component.TRANSFORMER]
        self.text: TextConfig = self._configs[Component.TEXT_CONNECTOR]
        self.video_vae: VideoVAEConfig = self._configs[Component.VIDEO_DECODER]
        self.audio_vae: AudioVAEConfig = self._configs[Component.AUDIO_DECODER]
        self.file_names: Mapping[str, str] = {"models": f"full-size {generation}, random weights (seed {seed})"}

    @property
    def num_layers(self) -> int:
        return self.transformer.num_layers

    @property
    def latent_channels(self) -> int:
        return self.video_vae.latent_channels

    @property
    def scale(self) -> ScaleFactors:
        return self.video_vae.scale

    @property
    def audio_geometry(self) -> AudioGeometry:
        return self.audio_vae.geometry

    def tokenizer(self) -> Any:
        return _Tokenizer()

    def adapter_strengths(self, phase: Phase, distilled_strength: tuple[float, float]) -> Mapping[str, float]:
        return {DISTILLED: distilled_strength[1 if phase is Phase.STAGE_2 else 0]}

    def skeleton(self, component: Component) -> nn.Module:
        """A component on the meta device, without LoRAs."""
        with torch.device("meta"):
            module = self._empty(component).to(weight_dtype(component, self.dtype)).eval().requires_grad_(False)
        if component is Component.TRANSFORMER and self.precision == "fp8":
            scale_layers(module, sorted(quantisable(linear_layers(module), self.transformer)))
        return module

    def fill(self, component: Component, tensors: Mapping[str, Tensor]) -> None:  # noqa: ARG002 - of the protocol Models
        """Random weights, for memory on the GPU or on the host: the same in both."""
        for name, tensor in tensors.items():
            if name.endswith(_SCALE):
                # Weights may come in groups: the scales are made from their weight's numbers
                tensor.copy_(self._quantised(name.removesuffix("_scale")).scales.view_as(tensor))
            elif tensor.dtype is FP8:
                tensor.copy_(self._quantised(name).values)
            else:
                self._fill(name, tensor)

    def _quantised(self, name: str) -> Quantised:
        """A linear layer's weight in fp8, with a scale for each output; made on the GPU where there is one."""
        if not self._shapes:
            layers = linear_layers(self.skeleton(Component.TRANSFORMER))
            self._shapes.update({f"{path}.weight": shape for path, shape in layers.items()})
        weight = torch.empty(self._shapes[name], dtype=self.dtype, device=self._maker)
        self._fill(name, weight)
        return quantise_rows(weight)

    def _fill(self, name: str, tensor: Tensor) -> None:
        pool = self._pool(tensor.device)
        spread = 0.8 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 and "table" not in name else 0.2
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        at, flat = zlib.crc32(name.encode()), tensor.view(-1)
        for begin in range(0, len(flat), POOL // 2):
            part = flat[begin : begin + POOL // 2]
            start = (at + begin) % (POOL - len(part) + 1)
            torch.mul(pool[start : start + len(part)], spread, out=part)
            if mean:
                part.add_(mean)

    def filled_transformer(self, device: torch.device) -> nn.Module:
        """The transformer in memory of its own, with the weights that :meth:`fill` makes."""
        module = self.skeleton(Component.TRANSFORMER).to_empty(device=device)
        self.fill(Component.TRANSFORMER, module.state_dict())
        logger.info("transformer, %s: %.2f GB", self.precision, sum(p.nbytes for p in module.parameters()) / 1e9)
        return module

    def _pool(self, device: torch.device) -> Tensor:
        if device not in self._pools:
            numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(self.seed))
            self._pools[device] = numbers.to(device=device, dtype=self.dtype)
        return self._pools[device]

    def adapt(self, transformer: nn.Module, names: Collection[str] = ()) -> None:  # noqa: ARG002 - of the protocol Models
        """The distilled LoRA with random matrices, in host memory."""
        lora: Any = _RandomLoRA(transformer, torch.Generator(self._maker).manual_seed(self.seed + 1))
        inject(transformer, [(DISTILLED, lora)], torch.device("cpu"))

    def component_bytes(self, component: Component) -> int:
        if component is Component.TEXT_ENCODER:
            return GEMMA_BYTES
        return sum(tensor.nbytes for tensor in self.skeleton(component).state_dict().values())

    def adapter_bytes(self) -> int:
        layers = linear_layers(self.skeleton(Component.TRANSFORMER)).values()
        return sum(min(LORA_RANK, *shape) * sum(shape) * self.dtype.itemsize for shape in layers)

    def text_states_bytes(self) -> int:
        return self.text.longest_pair * self.dtype.itemsize

    def build(self, component: Component, device: torch.device) -> nn.Module:
        """A component with random weights, made on the GPU where there is one and brought to ``device``."""
        if component is Component.TEXT_ENCODER:
            return _gemma(self._maker, self.text.text_width).to(device)
        generator = torch.Generator(self._maker).manual_seed(self.seed)
        module = fill_random_(self.skeleton(component), generator, self._maker).to(device)
        logger.info("%s: %.2f GB", component.value, sum(p.nbytes for p in module.parameters()) / 1e9)
        return module

    def _empty(self, component: Component) -> nn.Module:
        if component is Component.UPSAMPLER:
            described = tiny_upsampler_config if self.tiny else full_size_upsampler_config
            return upsampler_of(described(self.generation))
        return COMPONENTS[component].make(self._configs[component])


def _gemma(device: torch.device, width: int) -> nn.Module:
    """The text layers of Gemma 3 12B (docs/model.md 3.1), initialised by transformers; of another width, as many."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    config = Gemma3TextConfig(
        hidden_size=width,
        num_hidden_layers=GEMMA_LAYERS,
        sliding_window=1024,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # one of its **kwargs
        dtype=torch.bfloat16,
        **(_GEMMA_12B if width == GEMMA_WIDTH else _GEMMA_TINY),
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model: nn.Module = Gemma3TextModel(config)
            return model.eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


class _RandomLoRA:
    """The distilled LoRA's shape: every Linear of the DiT, rank 384 capped at min(in, out)."""

    def __init__(self, transformer: nn.Module, generator: torch.Generator) -> None:
        layers = linear_layers(transformer)
        self.targets = {path: _Rank(min(LORA_RANK, *shape)) for path, shape in layers.items()}
        self._layers, self._generator = layers, generator

    def read(self, device: torch.device, dtype: torch.dtype) -> dict[str, LoRAWeights]:
        read = {}
        for path, (out_features, in_features) in self._layers.items():
            rank = self.targets[path].rank
            down = torch.empty(rank, in_features, device=device, dtype=dtype)
            up = torch.empty(out_features, rank, device=device, dtype=dtype)
            for matrix in (down, up):
                made = torch.empty_like(matrix, device=self._generator.device)
                matrix.copy_(made.normal_(0, LORA_STD, generator=self._generator))
            read[path] = LoRAWeights(down, up, float(rank))
        return read


@dataclass(frozen=True)
class _Rank:
    rank: int
