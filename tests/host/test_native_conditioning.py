"""CONDITIONING between ComfyUI's own LTX-AV code and ours: both directions, on the same tiny weights."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

# Runs in the host's Python. Its Gemma 3 has the released sizes built in; everything else comes from the files.
COMPARE = """
import json
from pathlib import Path
folder, = arguments
import torch
import comfy.ops
from comfy.ldm.lightricks.av_model import LTXAVModel
from comfy.text_encoders import llama, lt
from safetensors import safe_open
from safetensors.torch import load_file

from pack.ltx2_core.loading.model_set import ModelFiles
from pack.ltx2_core.loading.synthetic import write_tiny
from pack.ltx2_core.request import GenerationRequest
from pack.nodes import conversions
from pack.nodes.handle import PIPELINES

PROMPT = "A red kite climbs over a windy beach, waves roar."
CPU = torch.device("cpu")
RELEASED = llama.Gemma3_12B_Config
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads")

def host_encoder(files, checkpoint):
    sizes = json.loads((files.gemma / "config.json").read_text())["text_config"]

    class Sized(RELEASED):
        def __init__(self, **given):
            super().__init__(**{name: sizes[name] for name in SIZES})
        head_dim = sizes["head_dim"]
        sliding_attention = [sizes["sliding_window"], False]
        vision_config = {**llama.GEMMA3_VISION_CONFIG, "hidden_size": 16, "intermediate_size": 16,
                         "num_attention_heads": 1, "num_hidden_layers": 1}

    llama.Gemma3_12B_Config = Sized
    encoder = lt.ltxav_te(dtype_llama=torch.float32, **lt.sd_detect([checkpoint]))(device="cpu", dtype=torch.float32)
    weights = {}
    for file in files.gemma.glob("*.safetensors"):
        weights |= load_file(file)
    prefix = next(name for name in weights if name.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    text = {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}
    encoder.gemma3_12b.transformer.model.load_state_dict(text)
    encoder.load_sd(checkpoint)
    encoder.set_clip_options({"execution_device": CPU})
    return encoder

def host_conditioning(encoder, handle, prompt):
    ids = handle.pipeline.models.tokenizer().encode(prompt, max_tokens=1024).tensor(CPU).tolist()
    padded = [(0, 1.0)] * (1024 - len(ids)) + [(token, 1.0) for token in ids]
    embeddings, pooled, extra = encoder.encode_token_weights({"gemma3_12b": [padded]})
    return [[embeddings, {"pooled_output": pooled, **extra}]]

def host_transformer(config, checkpoint):
    model = LTXAVModel(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    prefix = "model.diffusion_model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)})
    return model

def distance(one, other):
    return {"difference": (one - other).abs().max().item(), "std": other.std().item(), "shape": list(one.shape)}

facts = {}
for variant in ("2.3", "2.0"):
    files = write_tiny(Path(folder) / variant, variant)
    checkpoint = {name: value.float() for name, value in load_file(files.checkpoint).items()}
    with safe_open(files.checkpoint, "pt") as file:
        config = json.loads(file.metadata()["config"])["transformer"]
    set_of_files = ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora)
    handle = PIPELINES.open(set_of_files, torch.float32, CPU, "auto")
    with torch.inference_mode():
        conditioning = host_conditioning(host_encoder(files, checkpoint), handle, PROMPT)
        taken = conversions.to_context(conditioning, handle, "positive")
        own, _ = handle.pipeline.encode_prompt(GenerationRequest(PROMPT, handle.recipe("distilled")))
        handed = conversions.to_conditioning(own, PROMPT)
        transformer = host_transformer(config, checkpoint)
        inside = transformer.preprocess_text_embeds(conditioning[0][0], unprocessed=True)
        same = transformer.preprocess_text_embeds(handed[0][0])
    again = conversions.to_context(handed, handle, "positive")
    facts[variant] = {
        "flagged": conditioning[0][1].get("unprocessed_ltxav_embeds", False),
        "video": distance(taken.video, own.video),
        "audio": distance(taken.audio, own.audio),
        "host": distance(inside, handed[0][0]),
        "untouched": same is handed[0][0],
        "round trip": bool(torch.equal(again.video, own.video) and torch.equal(again.audio, own.audio)),
    }
print("FACTS" + json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tiny")
    return dict(comfyui.facts(COMPARE, folder, working=folder))


@pytest.mark.parametrize("variant", ["2.3", "2.0"])
def test_our_connectors_make_of_the_hosts_conditioning_what_our_encoder_makes(
    facts: dict[str, dict[str, Any]], variant: str
) -> None:
    found = facts[variant]
    assert found["flagged"], "the host leaves the connectors to the diffusion model"
    for stream in ("video", "audio"):
        assert found[stream]["shape"][1] == 1024
        # float32 on both sides over values of standard deviation 1; the host runs padded rows and other kernels
        assert found[stream]["std"] == pytest.approx(1, abs=0.05)
        assert found[stream]["difference"] < 2e-4


@pytest.mark.parametrize("variant", ["2.3", "2.0"])
def test_the_hosts_model_takes_our_conditioning_as_processed(facts: dict[str, dict[str, Any]], variant: str) -> None:
    assert facts[variant]["untouched"], "it would run its connectors a second time"
    # What its own connectors make of its own encoder's output is what we hand over
    assert facts[variant]["host"]["difference"] < 2e-4
    assert facts[variant]["round trip"]
