"""What `ltx2 inspect` says of every kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from ltx2_two_stage.ltx2_core.loading.inspect import inspect_file
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny23"), "2.3")


@pytest.fixture(scope="module")
def tiny20(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny20"), "2.0")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("inspect opened the weights")

    monkeypatch.setattr(SafetensorsFile, "each", refuse)
    monkeypatch.setattr(SafetensorsFile, "read_into", refuse)


def test_a_full_model(tiny: TinyFiles, tiny20: TinyFiles) -> None:
    found = inspect_file(tiny.checkpoint)
    assert (found.kind, found.generation, found.model_version) == ("full model", "2.3", "2.3.0")
    stored = load_file(tiny.checkpoint)
    assert found.tensors == len(stored) == sum(use.tensors for use in found.dtypes.values())
    assert found.nbytes == sum(tensor.nbytes for tensor in stored.values())
    assert list(found.dtypes) == ["BF16", "F32"]
    # Six modulation tables per block and two at the head are float32 (docs/model.md 1.4)
    assert found.dtypes["F32"].tensors == 6 * 3 + 2
    # All but the two statistics that nobody reads; each autoencoder's other two are counted for both of its halves
    assert sum(found.components.values()) == len(stored) - 2 + 4
    assert found.config is not None and found.config["transformer"]["num_layers"] == 3
    assert inspect_file(tiny20.checkpoint).generation == "2.0"


def test_the_others(tiny: TinyFiles, tiny20: TinyFiles) -> None:
    lora = inspect_file(tiny.distilled_lora)
    assert (lora.kind, lora.generation) == ("LoRA", "2.3")
    assert lora.details == {
        "targets": 130,
        "rank": [4, 16],
        "alpha": False,
        "parameters": lora.nbytes // 2,
        "left out": [],
    }
    assert inspect_file(tiny20.lora).generation == "2.0"
    assert inspect_file(tiny.upsampler).details == {"upsampler": "x2"}
    assert inspect_file(tiny20.upsampler).details == {"upsampler": "x2 rational"}
    gemma = inspect_file(tiny.gemma)
    assert gemma.kind == "Gemma 3 text encoder"
    assert gemma.details == {"hidden size": 48, "layers": 4}
    for shard in tiny.gemma.glob("*.safetensors"):
        assert inspect_file(shard).kind == "Gemma 3 text encoder"


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (("model.diffusion_model.",), "transformer only"),
        (("vae.",), "video VAE"),
        (("audio_vae.", "vocoder."), "audio VAE and vocoder"),
        (("audio_vae.",), "audio VAE and vocoder"),
        (("text_embedding_projection.",), "text projection"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
@pytest.mark.parametrize("bare", [False, True])
def test_parts(tiny: TinyFiles, tmp_path: Path, start: tuple[str, ...], kind: str, bare: bool) -> None:
    kept = {key: tensor for key, tensor in load_file(tiny.checkpoint).items() if key.startswith(start)}
    path = tmp_path / "part.safetensors"
    save_file({key.removeprefix(start[0]) if bare else key: tensor for key, tensor in kept.items()}, path)
    found = inspect_file(path)
    assert (found.kind, found.config, found.generation) == (kind, None, None)
    assert found.components and "config" in found.to_text()


def test_a_file_that_cannot_be_used_is_described_with_its_problem(tiny: TinyFiles, tmp_path: Path) -> None:
    path = tmp_path / "ic.safetensors"
    save_file(load_file(tiny.lora), path, {"reference_downscale_factor": "2"})
    found = inspect_file(path)
    assert found.kind == "LoRA" and found.problem is not None and "IC-LoRA" in found.problem
    assert found.metadata == {"reference_downscale_factor": "2"}
    assert "problem" in found.to_text()

    save_file({"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, path)
    assert inspect_file(path).kind == "another model (a Wan video model)"
    save_file({"x": torch.zeros(2, 2)}, path)
    assert inspect_file(path).kind == "unknown"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        inspect_file(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect_file(tmp_path / "missing.safetensors")


def test_text_and_json_say_the_same(tiny: TinyFiles) -> None:
    for path in (tiny.checkpoint, tiny.lora, tiny.upsampler, tiny.gemma):
        found = inspect_file(path)
        loaded = json.loads(json.dumps(found.to_json()))
        assert (loaded["kind"], loaded["tensors"], loaded["nbytes"]) == (found.kind, found.tensors, found.nbytes)
        assert loaded["dtypes"] == {
            name: {"tensors": u.tensors, "nbytes": u.nbytes} for name, u in found.dtypes.items()
        }
        text = found.to_text()
        assert str(path) in text and found.kind in text and f"{found.tensors:,} tensors" in text
        assert all(dtype in text for dtype in found.dtypes)
    with safe_open(tiny.checkpoint, "pt") as file:  # the metadata comes back as it is in the file
        assert inspect_file(tiny.checkpoint).to_json()["config"] == json.loads(file.metadata()["config"])
