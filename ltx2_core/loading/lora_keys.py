"""What a key of a LoRA file means: which module, which of its tensors, and what part of the model that is.

Every trainer's spelling is brought to the official one first; only then a module is sorted (docs/model.md 9.3): layer
of the transformer, another part of the model, or unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .keymaps import dotted_name, is_layer, official_name

__all__ = ["PREFIXES", "WHOLE", "LoRAKey", "is_layer", "other_part", "parse_key"]

WHOLE = "whole weights beside the LoRA"
LONGEST_KEY = 1000  # characters; the longest of a real file has about 120

_MATRIX = re.compile(r"(.+)\.lora_(A|B|down|up)(?:\.([^.]+))?\.weight", re.DOTALL)
_BARE_MATRIX = re.compile(r"(.+)\.lora_(A|B|down|up)", re.DOTALL)
_ALPHA = ".alpha"
_PARTS = {"A": "down", "down": "down", "B": "up", "up": "up"}

# Ends of keys of adapters that are no plain LoRA -> their name
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"[._]lora(_linear_layer)?\.(down|up)\.weight", "matrices in diffusers' old layout (.lora.down, .lora.up)"),
    (r"\.lora_[ab](\.[^.]+)?(\.weight)?", "matrices in MLX's layout (.lora_a, .lora_b)"),
    (r"\.diff", "full weight differences (.diff)"),
    (r"\.diff_b", "bias differences (.diff_b)"),
    (r"\.set_weight", "whole weights (.set_weight)"),
    (r"\.(dora_scale|lora_magnitude_vector(\.[^.]+)*)", "DoRA magnitudes"),
    (r"\.lora_(A|B|down|up)(\.[^.]+)?\.bias", "LoRA biases"),
    (r"\.lora_mid\.weight", "LoCon tensors"),
    (r"\.lora_embedding_[AB](\.[^.]+)?", "LoRA matrices of embeddings"),
    (r"\.hada_\w+", "LoHa tensors"),
    (r"\.lokr_\w+", "LoKr tensors"),
    (r"\.(oft|boft)_\w+(\.[^.]+)*|\.rescale", "OFT tensors"),
    (r"\.[ab][12]\.weight", "GLoRA tensors"),
    (r"\.vera_\w+(\.[^.]+)*", "VeRA tensors"),
    (r"\.(ia3_l(\.[^.]+)?|on_input)", "IA3 tensors"),
    (r"\.[wb]_norm", "norm differences (.w_norm, .b_norm)"),
    (r"\.scalar", "LyCORIS scalars"),
    (r"\.reshape_weight", "reshaped weights"),
    (r"\.modules_to_save(\.[^.]+)*", "whole layers (modules_to_save)"),
    (r"\.(weight|bias)", WHOLE),
)
_OTHER_KIND = tuple((re.compile(rf"(.+)(?:{end})", re.DOTALL), kind) for end, kind in _OTHER_KINDS)

# Longest first where one contains another; taken off as often as they are there.
PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "velocity_model.",
    "pipe.dit.",
    "dit.",
    "module.",
)
_UNDERSCORE_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
_INNER_UNDERSCORE_PREFIXES = ("model_diffusion_model_", "diffusion_model_", "unet_")
# What torch.compile and sharded training put between the names of modules
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_STREAM = r"((video|audio)_)?"
_OTHER_PARTS: tuple[tuple[str, str], ...] = (
    (
        "text connector",
        rf"(text_embedding_projection|{_STREAM}(embeddings_)?connectors?|{_STREAM}text_proj_in|"
        rf"{_STREAM}aggregate_embed|embeddings_processor|feature_extractor(_linear)?)([._]|$)",
    ),
    (
        "text encoder",
        r"(lora_)?te\d?[._]|text_(encoders?|models?)(_?\d)?[._]|gemma\w*[._]|clip_[glh][._]|t5xxl[._]|cond_stage_model[._]"
        r"|(model[._])*(language_model|vision_tower|vision_model|multi_modal_projector|lm_head|embed_tokens)([._]|$)"
        r"|(model[._])*layers[._]\d+[._](self_attn|mlp)[._]",
    ),
    ("video VAE", r"(video_)?vae[._]|first_stage_model[._]"),
    ("audio VAE", r"audio_vae[._]"),
    ("vocoder", r"vocoder[._]"),
    ("latent upsampler", r"(latent_|spatial_|temporal_)?upsampl(er|e_model)[._]"),
)
_OTHER_PART = tuple((part, re.compile(pattern)) for part, pattern in _OTHER_PARTS)


@dataclass(frozen=True)
class LoRAKey:
    """A key of a LoRA file.

    Attributes:
        module: official path of the layer, or the trainer's where it is none of the transformer's.
        written: the layer's path as the trainer wrote it, without what wraps the model.
        part: ``down``, ``up`` or ``alpha``; None for what a plain LoRA does not have.
        kind: what the tensor is, where ``part`` is None; "" where nobody knows.
        adapter: the name that PEFT gave the adapter, or "".
    """

    module: str
    written: str
    part: str | None
    kind: str = ""
    adapter: str = ""


def parse_key(key: str) -> LoRAKey:
    """Module and part of a key of any trainer's."""
    if len(key) > LONGEST_KEY:
        return LoRAKey(key, key, None)
    if match := _MATRIX.fullmatch(key) or _BARE_MATRIX.fullmatch(key):
        adapter = match[3] or "" if match.re is _MATRIX else ""
        return LoRAKey(*_names(match[1]), _PARTS[match[2]], adapter=adapter)
    if key.endswith(_ALPHA):
        return LoRAKey(*_names(key[: -len(_ALPHA)]), "alpha")
    for pattern, kind in _OTHER_KIND:
        if match := pattern.fullmatch(key):
            return LoRAKey(*_names(match[1]), None, kind)
    return LoRAKey(*_names(key), None)


def other_part(module: str) -> str | None:
    """The part of the model beside the transformer that a module belongs to, in words, or None."""
    return next((part for part, pattern in _OTHER_PART if pattern.match(module)), None)


def _names(module: str) -> tuple[str, str]:
    """Official path, and the trainer's own without prefixes."""
    module = _without_wrappers(module)
    if other_part(module):
        return module, module
    for prefix in _UNDERSCORE_PREFIXES:
        if module.startswith(prefix):
            return _from_underscores(module[len(prefix) :])
    return _official(module), module


def _from_underscores(name: str) -> tuple[str, str]:
    for prefix in _INNER_UNDERSCORE_PREFIXES:
        name = name.removeprefix(prefix)
    if not name.startswith("transformer_blocks_"):
        name = name.removeprefix("transformer_")
    if other_part(name):
        return name, name
    dotted = dotted_name(name)
    return _official(dotted), dotted


def _without_wrappers(module: str) -> str:
    module = ".".join(name for name in module.split(".") if name not in _WRAPPERS)
    before = None
    while module != before:
        before = module
        for prefix in PREFIXES:
            module = module.removeprefix(prefix)
    return module


def _official(module: str) -> str:
    name = official_name(module)
    # Some trainers name the attention's output by its list of layers
    return f"{name}.0" if name.endswith(".to_out") else name
