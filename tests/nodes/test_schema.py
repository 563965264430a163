"""The nodes' declarations, read from the classes themselves by the host's own Python."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

# Ids that saved workflows refer to: never change one.
FROZEN_IDS = {
    "LTX2TwoStageLoader": "checkpoint text_encoder distilled_lora upsampler dtype device_mode video_vae audio_vae"
    " text_projection precision -> LTX2_PIPELINE",
    "LTX2TwoStageLoRA": "pipeline lora strength stage -> LTX2_PIPELINE",
    "LTX2TwoStageRecipe": "preset steps sampler video_cfg video_stg video_modality video_rescale video_blocks"
    " video_skip audio_cfg audio_stg audio_modality audio_rescale audio_blocks audio_skip distilled_strength_1"
    " distilled_strength_2 audio_source revision sigmas refine_sigmas schedule_tokens guidance_passes -> LTX2_RECIPE",
    "LTX2TwoStageTextEncode": "pipeline prompt negative_prompt -> CONDITIONING CONDITIONING",
    "LTX2TwoStageImageCondition": "image frame strength images -> LTX2_IMAGES",
    "LTX2TwoStageDenoise": "pipeline positive preset width height frames fps seed steps negative images recipe audio"
    " -> LTX2_PIPELINE LATENT",
    "LTX2TwoStageLoRASwitch": "pipeline stage strength -> LTX2_PIPELINE",
    "LTX2TwoStageUpsample": "pipeline latent -> LATENT",
    "LTX2TwoStageRefine": "pipeline positive latent audio_source preset fps seed images -> LTX2_PIPELINE LATENT",
    "LTX2TwoStageDecode": "pipeline latent fps vae -> IMAGE AUDIO VIDEO",
    "LTX2TwoStageGenerate": "pipeline prompt negative_prompt preset width height frames fps seed steps images recipe"
    " audio -> VIDEO IMAGE AUDIO LATENT STRING",
    "LTX2TwoStageModel": "pipeline stage preset recipe -> MODEL",
    "LTX2TwoStageReport": "pipeline after -> STRING STRING IMAGE SVG",
    "LTX2TwoStageDownload": "generation preset text_encoder accept_licences -> STRING",
}

DESCRIBE = """
import asyncio, importlib.util, inspect, json, sys
root, host = sys.argv[1:]
sys.path.insert(0, host)
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
assert not hasattr(pack, "NODE_CLASS_MAPPINGS"), "the host would ignore the V3 entry point"

async def describe():
    extension = await pack.comfy_entrypoint()
    facts = []
    for node in await extension.get_node_list():
        schema = node.GET_SCHEMA()
        parameters = inspect.signature(node.execute, eval_str=False).parameters.values()
        lines = inspect.getsource(node.execute).split("io.NodeOutput:", 1)[1].splitlines()
        facts.append({
            "id": schema.node_id, "category": schema.category, "description": schema.description,
            "display_name": schema.display_name,
            "inputs": [i.id for i in schema.inputs], "optional": [i.id for i in schema.inputs if i.optional],
            "outputs": [o.io_type for o in schema.outputs],
            "tooltips": {i.id: i.tooltip for i in schema.inputs},
            "output_tooltips": [o.tooltip for o in schema.outputs],
            "parameters": [p.name for p in parameters],
            "untyped": [p.name for p in parameters if p.annotation is inspect.Parameter.empty],
            "defaults": [p.name for p in parameters if p.default is not inspect.Parameter.empty],
            "body": len([line for line in lines if line.strip()]),
        })
    print("FACTS" + json.dumps(facts))

asyncio.run(describe())
"""


@pytest.fixture(scope="module")
def nodes(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [str(comfyui.python), "-c", DESCRIBE, str(ROOT), str(comfyui.folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("host"),
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS"))
    return {node["id"]: node for node in json.loads(line.removeprefix("FACTS"))}


def test_ids_inputs_and_outputs_are_the_released_ones(nodes: dict[str, dict[str, Any]]) -> None:
    assert {name: " ".join([*n["inputs"], "->", *n["outputs"]]) for name, n in nodes.items()} == FROZEN_IDS


@pytest.mark.parametrize("name", FROZEN_IDS)
def test_execute_takes_exactly_the_declared_inputs_typed(nodes: dict[str, dict[str, Any]], name: str) -> None:
    node = nodes[name]
    assert node["parameters"] == node["inputs"]
    assert node["untyped"] == []
    assert node["defaults"] == node["optional"]


@pytest.mark.parametrize("name", FROZEN_IDS)
def test_everything_is_explained(nodes: dict[str, dict[str, Any]], name: str) -> None:
    node = nodes[name]
    assert node["category"] == "LTX-2 Two-Stage"
    assert node["display_name"].startswith("LTX-2 ")
    texts = [node["description"], *node["tooltips"].values(), *node["output_tooltips"]]
    for text in texts:
        assert text and len(text) > 10 and text.endswith("."), (name, text)


@pytest.mark.parametrize("name", FROZEN_IDS)
def test_nodes_are_thin(nodes: dict[str, dict[str, Any]], name: str) -> None:
    assert nodes[name]["body"] <= 22


FOLDERS = """
models, = arguments
from pathlib import Path
from pack.nodes.host import _layout_folders
print("FOUND", *_layout_folders(Path(models)))
"""


def test_links_among_model_folders_are_followed_and_never_in_circles(comfyui: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("models/real/gemma", "elsewhere/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    (models / "real" / "up").symlink_to(models)
    (tmp_path / "elsewhere" / "back").symlink_to(models)  # a circle of two links
    found = comfyui.run(FOLDERS, models, working=tmp_path).split("FOUND", 1)[1].split()
    assert found == ["linked/other", "real/gemma"]
