"""Gemma 3's sizes, from the shapes of its tensors, and its settings, from config.json where there is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..config_reader import ConfigReader

Shapes = Mapping[str, tuple[int, ...]]

SLIDING, GLOBAL = "sliding_attention", "full_attention"
DEFAULT_PATTERN = 6  # every 6th layer is global

_LAYER = re.compile(r"layers\.(\d{1,5})\.")  # a name can say any number: layers are counted, not numbered
# Stated sizes must agree with the tensors.
_SIZES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "feed_forward_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_dim",
}


@dataclass(frozen=True)
class GemmaSizes:
    """What the tensors' shapes tell."""

    vocab_size: int
    hidden_size: int
    feed_forward_size: int
    num_layers: int
    heads: int
    key_value_heads: int
    head_dim: int

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> GemmaSizes:
        """Reads the sizes off a text model's tensors, named as in ``Gemma3TextModel``.

        Raises:
            ConfigError: a tensor is missing, is one too many or has another shape than the others imply.
        """
        vocab_size, hidden_size = _shape(shapes, "embed_tokens.weight", 2)
        (head_dim,) = _shape(shapes, "layers.0.self_attn.q_norm.weight", 1)
        sizes = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            feed_forward_size=_shape(shapes, "layers.0.mlp.gate_proj.weight", 2)[0],
            num_layers=len({match[1] for name in shapes if (match := _LAYER.match(name))}),
            heads=_shape(shapes, "layers.0.self_attn.q_proj.weight", 2)[0] // head_dim,
            key_value_heads=_shape(shapes, "layers.0.self_attn.k_proj.weight", 2)[0] // head_dim,
            head_dim=head_dim,
        )
        expected = sizes.shapes()
        for problem, names in (
            ("is missing", expected.keys() - shapes.keys()),
            ("is not a tensor of Gemma 3", shapes.keys() - expected.keys()),
        ):
            if names:
                raise ConfigError(min(names), None, f"{problem} ({len(names)} in all)", "")
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise ConfigError(name, shapes[name], f"has another shape than the other tensors imply, {shape}", "")
        if head_dim % 2 or sizes.heads % sizes.key_value_heads:
            name, problem = "layers.0.self_attn.q_norm.weight", "makes heads that cannot be turned or shared"
            raise ConfigError(name, shapes[name], problem, "")
        return sizes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the text model."""
        hidden, inner = self.hidden_size, self.feed_forward_size
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "pre_feedforward_layernorm": (hidden,),
            "post_feedforward_layernorm": (hidden,),
        }
        tensors: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_layers):
            tensors |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        return tensors | {"norm.weight": (hidden,)}


@dataclass(frozen=True)
class GemmaConfig:
    """Everything that decides the text model's arithmetic.

    Attributes:
        layer_types: per layer, ``sliding_attention`` or ``full_attention``.
        sliding_window: how many tokens a sliding layer looks back, itself included.
        query_scalar: attention scores are divided by its square root.
        rope_theta, rope_factor: of the global layers; positions are divided by the factor.
        local_rope_theta: of the sliding layers.
    """

    sizes: GemmaSizes
    layer_types: tuple[str, ...]
    sliding_window: int
    query_scalar: float
    norm_eps: float
    rope_theta: float
    rope_factor: float
    local_rope_theta: float

    @classmethod
    def released(cls, sizes: GemmaSizes) -> GemmaConfig:
        """The settings of Gemma 3 12B, for files that carry no configuration (docs/model.md 3.1)."""
        return cls(
            sizes=sizes,
            layer_types=_layer_pattern(sizes.num_layers, DEFAULT_PATTERN),
            sliding_window=1024,
            query_scalar=sizes.head_dim,
            norm_eps=1e-6,
            rope_theta=1e6,
            rope_factor=8.0,
            local_rope_theta=1e4,
        )

    @classmethod
    def from_json(cls, sizes: GemmaSizes, text_config: Any) -> GemmaConfig:
        """Reads the text part of config.json, as transformers 4 or 5 writes it.

        What it leaves out has the defaults of transformers' ``Gemma3TextConfig``: released files rely on them.

        Raises:
            ConfigError: a setting is not supported, or a size contradicts the tensors.
        """
        reader = ConfigReader("text_config", text_config)
        for key, attribute in _SIZES.items():
            reader.require(key, getattr(sizes, attribute), default=getattr(sizes, attribute))
        for key, value in (
            ("hidden_activation", "gelu_pytorch_tanh"),
            ("attention_bias", False),
            ("attn_logit_softcapping", None),
            ("use_bidirectional_attention", False),
        ):
            reader.require(key, value, default=value)
        rope_theta, rope_factor, local_rope_theta = _rope(reader)
        return cls(
            sizes=sizes,
            layer_types=_layer_types(reader, sizes.num_layers),
            sliding_window=reader.int("sliding_window", 4096),
            query_scalar=reader.positive("query_pre_attn_scalar", 256),
            norm_eps=reader.positive("rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_factor=rope_factor,
            local_rope_theta=local_rope_theta,
        )

    def arguments(self) -> dict[str, Any]:
        """What ``Gemma3TextConfig`` is made from; these names work in transformers 4.50 to 5.

        Before 4.53 it knows the layers by the distance of the global ones alone.
        """
        return {
            "vocab_size": self.sizes.vocab_size,
            "hidden_size": self.sizes.hidden_size,
            "intermediate_size": self.sizes.feed_forward_size,
            "num_hidden_layers": self.sizes.num_layers,
            "num_attention_heads": self.sizes.heads,
            "num_key_value_heads": self.sizes.key_value_heads,
            "head_dim": self.sizes.head_dim,
            "layer_types": list(self.layer_types),
            "sliding_window_pattern": self.layer_types.index(GLOBAL) + 1
            if GLOBAL in self.layer_types
            else len(self.layer_types) + 1,
            "sliding_window": self.sliding_window,
            "query_pre_attn_scalar": _whole(self.query_scalar),
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": {"rope_type": "linear", "factor": self.rope_factor} if self.rope_factor != 1 else None,
            "rope_local_base_freq": self.local_rope_theta,
            "use_cache": False,
            "attn_implementation": "sdpa",
        }


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ConfigError(name, None, "is missing", "")
    shape = shapes[name]
    if len(shape) != dimensions or 0 in shape:
        raise ConfigError(name, shape, f"must have {dimensions} dimensions that are not empty", "")
    return shape


def _layer_types(reader: ConfigReader, num_layers: int) -> tuple[str, ...]:
    if "layer_types" not in reader:
        # Either name occurs, depending on the version that wrote the file
        pattern = reader.int("_sliding_window_pattern", DEFAULT_PATTERN)
        return _layer_pattern(num_layers, reader.int("sliding_window_pattern", pattern))
    types = reader.raw("layer_types")
    if not isinstance(types, list) or len(types) != num_layers or any(t not in (SLIDING, GLOBAL) for t in types):
        raise reader.error("layer_types", f"must name {SLIDING} or {GLOBAL} for each of {num_layers} layers")
    return tuple(types)


def _layer_pattern(num_layers: int, pattern: int) -> tuple[str, ...]:
    return tuple(SLIDING if (i + 1) % pattern else GLOBAL for i in range(num_layers))


def _rope(reader: ConfigReader) -> tuple[float, float, float]:
    """Theta and factor of the global layers, theta of the sliding ones."""
    if "rope_parameters" in reader:  # transformers 5
        rope = reader.child("rope_parameters")
        both = [rope.child(kind) if kind in rope else ConfigReader(kind, {}) for kind in (GLOBAL, SLIDING)]
        thetas = [kind.positive("rope_theta", theta) for kind, theta in zip(both, (1e6, 1e4), strict=True)]
        if _rope_factor(both[1]) != 1:
            raise both[1].error("factor", "is not supported in sliding layers (supported: 1)")
        return thetas[0], _rope_factor(both[0]), thetas[1]
    factor = _rope_factor(reader.child("rope_scaling")) if "rope_scaling" in reader else 1.0
    return reader.positive("rope_theta", 1e6), factor, reader.positive("rope_local_base_freq", 1e4)


def _rope_factor(rope: ConfigReader) -> float:
    kind = "rope_type" if "rope_type" in rope else "type"
    if rope.str(kind, "default", choices=("default", "linear")) == "default":
        return 1.0
    return rope.positive("factor")


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
