"""What importing the pack costs and needs, and what is left of it when a part of it or the host does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

LIMIT = 0.3  # seconds that the import may add to the host's start; 0.13 to 0.2 were measured on two busy cores

IMPORT = """
import asyncio, json, logging, os, time
folder, = arguments
import nodes, server, torch, comfy_api.latest, comfyui_version  # the host has them before it looks for packs

opened = []
def watch(event, details):
    if event == "open" and str(details[0]).endswith((".safetensors", ".sft", ".model", "tokenizer.json")):
        opened.append(str(details[0]))
sys.addaudithook(watch)

def forbidden(*args, **kwargs):
    raise AssertionError("the import made a CUDA context")

torch.cuda._lazy_init = forbidden
before = set(sys.modules)
busy = time.process_time()
extension = asyncio.run(pack.comfy_entrypoint())
found = asyncio.run(extension.get_node_list())
facts = {
    "busy": time.process_time() - busy,
    "nodes": [node.GET_SCHEMA().node_id for node in found],
    "opened": opened,
    "foreign": sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"pack"}),
    "cuda": torch.cuda.is_initialized(),
}

class Records(logging.Handler):
    def emit(self, record):
        facts.setdefault("log", []).append(self.format(record))

logging.getLogger("ltx2").addHandler(Records())

def again():
    for name in [name for name in sys.modules if name.startswith("pack.nodes")]:
        del sys.modules[name]
    return asyncio.run(pack.comfy_entrypoint())

class Broken:
    names, error = (), SyntaxError
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise self.error(f"somebody broke {name}")

sys.meta_path.insert(0, Broken())
Broken.names = ("pack.nodes.image", "pack.nodes.panel")
extension = again()
asyncio.run(extension.on_load())
facts["without panel"] = [node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]
Broken.names = ("pack.nodes.image",)
facts["without image"] = [node.GET_SCHEMA().node_id for node in asyncio.run(again().get_node_list())]
Broken.names = ("pack.nodes.sockets",)
try:
    asyncio.run(again().get_node_list())
except SyntaxError as error:
    facts["without any"] = str(error)

Broken.names = ()
current = comfyui_version.__version__
for version in ("0.7.9", "0.3", "0.8.0", "v1.0.0-beta", "unknown"):
    comfyui_version.__version__ = version
    try:
        again()
    except ImportError as error:
        facts[version] = str(error)
comfyui_version.__version__ = current
Broken.names, Broken.error = ("comfy_api.latest",), ImportError
del sys.modules["comfy_api.latest"]
try:
    again()
except ImportError as error:
    facts["no API"] = str(error)
print("FACTS" + json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("import")
    found: dict[str, Any] = comfyui.facts(IMPORT, folder, working=folder)
    if found["busy"] > LIMIT:  # the first import of a fresh checkout also compiles it
        found |= {"busy": comfyui.facts(IMPORT, folder, working=folder)["busy"]}
    return found


def test_the_import_is_cheap(facts: dict[str, Any]) -> None:
    # Processor time: what other programs do meanwhile is not ours
    assert facts["busy"] < LIMIT
    heavy = {"transformers", "peft", "huggingface_hub", "tokenizers", "sentencepiece", "triton", "diffusers", "av"}
    assert not heavy & set(facts["foreign"]), "loaded when they are first used"


def test_the_import_reads_no_weights_and_leaves_the_gpu_alone(facts: dict[str, Any]) -> None:
    assert facts["opened"] == []
    assert facts["cuda"] is False


def test_a_node_that_cannot_be_imported_leaves_the_others(facts: dict[str, Any]) -> None:
    missing = set(facts["nodes"]) - set(facts["without image"])
    assert missing == {"LTX2TwoStageImageCondition"}
    text = next(text for text in facts["log"] if "ImageCondition" in text)
    assert "is left out" in text and "Traceback" in text and "somebody broke pack.nodes.image" in text


def test_the_nodes_work_without_the_panel_where_they_can(facts: dict[str, Any]) -> None:
    assert "LTX2TwoStageLoader" in facts["without panel"] and "LTX2TwoStageRecipe" in facts["without panel"]
    assert any("the device panel is left out" in text for text in facts["log"])


def test_a_pack_of_which_nothing_works_says_why(facts: dict[str, Any]) -> None:
    assert facts["without any"] == "somebody broke pack.nodes.sockets"


def test_an_old_comfyui_is_told_so(facts: dict[str, Any]) -> None:
    assert facts["0.7.9"] == (
        "LTX-2 Two-Stage needs ComfyUI 0.8.0 or newer; this is 0.7.9. Update ComfyUI, or disable this node pack."
    )
    assert "this is 0.3." in facts["0.3"]
    assert "its V3 node API cannot be imported" in facts["no API"]
    assert not {"0.8.0", "v1.0.0-beta", "unknown"} & facts.keys()
