"""Which files are picked from a list of names, by tables, and the Hub download around it with a fake client."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors as hub_errors
from ltx2_two_stage.ltx2_core.errors import CheckpointError, LTX2Error, SettingError
from ltx2_two_stage.ltx2_core.loading.artifact_names import Role, parse_name, variant_of
from ltx2_two_stage.ltx2_core.loading.artifacts import select, select_in_folder
from ltx2_two_stage.ltx2_core.loading.download import GEMMA_REPOSITORY, download_files, download_gemma, download_set

REPO_23 = (
    "README.md",
    "ltx-2.3-22b-dev.safetensors",
    "ltx-2.3-22b-distilled.safetensors",
    "ltx-2.3-22b-distilled-1.1.safetensors",
    "ltx-2.3-22b-distilled-lora-384.safetensors",
    "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors",
    "ltx-2.3-spatial-upscaler-x2-1.0.safetensors",
    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    "ltx-2.3-temporal-upscaler-x2-1.0.safetensors",
)
REPO_20 = (
    "ltx-2-19b-dev.safetensors",
    "ltx-2-19b-dev-fp8.safetensors",
    "ltx-2-19b-dev-fp4.safetensors",
    "ltx-2-19b-distilled.safetensors",
    "ltx-2-19b-distilled-fp8.safetensors",
    "ltx-2-19b-distilled-lora-384.safetensors",
    "ltx-2-spatial-upscaler-x2-1.0.safetensors",
    "ltx-2-temporal-upscaler-x2-1.0.safetensors",
    "model_index.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00008.safetensors",
)
DEV_23, LORA_23 = "ltx-2.3-22b-dev.safetensors", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
X2_23, X2_20 = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", "ltx-2-spatial-upscaler-x2-1.0.safetensors"
DEV_20, LORA_20 = "ltx-2-19b-dev.safetensors", "ltx-2-19b-distilled-lora-384.safetensors"

CASES: dict[str, tuple[Sequence[str], str, dict[str, str]]] = {
    "2.3 two-stage": (
        REPO_23,
        "two-stage",
        {"checkpoint": DEV_23, "upsampler": X2_23, "distilled_lora": LORA_23},
    ),
    "2.3 hq": (REPO_23, "hq", {"checkpoint": DEV_23, "upsampler": X2_23, "distilled_lora": LORA_23}),
    "2.3 distilled": (
        REPO_23,
        "distilled",
        {"checkpoint": "ltx-2.3-22b-distilled-1.1.safetensors", "upsampler": X2_23},
    ),
    "2.3 one-stage": (REPO_23, "one-stage", {"checkpoint": DEV_23}),
    "2.0 two-stage, text encoder in the pipeline's folder": (
        REPO_20,
        "two-stage",
        {"checkpoint": DEV_20, "upsampler": X2_20, "distilled_lora": LORA_20, "gemma": "."},
    ),
    "both generations: the newer, with its own companions": (
        (*REPO_20[:8], *REPO_23),
        "two-stage",
        {"checkpoint": DEV_23, "upsampler": X2_23, "distilled_lora": LORA_23},
    ),
    "companions of the other generation are not taken": (
        (DEV_23, LORA_20, X2_20),
        "two-stage",
        {"checkpoint": DEV_23},
    ),
    "the newest upsampler of the own generation, not the newest of all": (
        (DEV_20, X2_23, X2_20),
        "two-stage",
        {"checkpoint": DEV_20, "upsampler": X2_20},
    ),
    "22b before 20b, whatever the order": (
        ("ltx-2.3-20b-dev.safetensors", DEV_23, "ltx-2.3-9b-dev.safetensors"),
        "one-stage",
        {"checkpoint": DEV_23},
    ),
    "a LoRA of another size of the model is not taken": (
        (DEV_23, "ltx-2.3-20b-distilled-lora-384-1.2.safetensors", "ltx-2.3-22b-distilled-lora-384.safetensors"),
        "two-stage",
        {"checkpoint": DEV_23, "distilled_lora": "ltx-2.3-22b-distilled-lora-384.safetensors"},
    ),
    "revisions are numbers: 1.10 after 1.9": (
        tuple(f"ltx-2.3-22b-distilled-1.{n}.safetensors" for n in (9, 10, 2)),
        "distilled",
        {"checkpoint": "ltx-2.3-22b-distilled-1.10.safetensors"},
    ),
    "generations are numbers, and unknown ones are left alone": (
        ("ltx-2.10-30b-dev.safetensors", "ltx-2.4-24b-dev.safetensors", DEV_23, DEV_20),
        "one-stage",
        {"checkpoint": DEV_23},
    ),
    "bf16 before fp8, even of an older revision": (
        ("ltx-2.3-22b-distilled-1.1-fp8.safetensors", "ltx-2.3-22b-distilled.safetensors"),
        "distilled",
        {"checkpoint": "ltx-2.3-22b-distilled.safetensors"},
    ),
    "what loads before what does not": (
        ("ltx-2.3-22b-dev-fp4.safetensors", "ltx-2.3-22b-dev_fp8_e5m2.safetensors", DEV_20),
        "one-stage",
        {"checkpoint": DEV_20},
    ),
    "fp8 of the newest generation before bf16 of an older one": (
        ("ltx-2.3-22b-dev-fp8.safetensors", DEV_20, X2_20, LORA_20, X2_23, LORA_23),
        "two-stage",
        {"checkpoint": "ltx-2.3-22b-dev-fp8.safetensors", "upsampler": X2_23, "distilled_lora": LORA_23},
    ),
    "bf16 before fp8 of one generation, in any case and order": (
        ("LTX-2.3-22B-Dev_FP8_scaled.SAFETENSORS", "checkpoints/LTX-2.3-22b-DEV.safetensors"),
        "one-stage",
        {"checkpoint": "checkpoints/LTX-2.3-22b-DEV.safetensors"},
    ),
    "the newest revision of fp8 files, wherever it is written": (
        (
            "ltx-2.3-22b-distilled-fp8.safetensors",
            "ltx-2.3-22b-distilled_fp8_scaled-1.1.safetensors",
            "ltx-2.3-22b-distilled-1.0-fp8.safetensors",
        ),
        "distilled",
        {"checkpoint": "ltx-2.3-22b-distilled_fp8_scaled-1.1.safetensors"},
    ),
    "fp8 with all its parts before a bf16 transformer without": (
        ("ltx-2.3-22b-dev_transformer_only_bf16.safetensors", "ltx-2.3-22b-dev-fp8.safetensors"),
        "one-stage",
        {"checkpoint": "ltx-2.3-22b-dev-fp8.safetensors"},
    ),
    "split files of fp8 alone": (
        (
            "diffusion_models/ltx-2.3-22b-distilled-1.1_transformer_only_fp8_input_scaled_v2.safetensors",
            "diffusion_models/ltx-2-19b-distilled-fp8_transformer_only.safetensors",
            "text_encoders/gemma_3_12B_it_fp8_scaled.safetensors",
            "text_encoders/gemma_3_12B_it_fp4_mixed.safetensors",
            "latent_upscale_models/ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        ),
        "distilled",
        {
            "checkpoint": "diffusion_models/ltx-2.3-22b-distilled-1.1_transformer_only_fp8_input_scaled_v2.safetensors",
            "gemma": "text_encoders/gemma_3_12B_it_fp8_scaled.safetensors",
            "upsampler": "latent_upscale_models/ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        },
    ),
    "keyframes take what two stages take": (
        REPO_23,
        "keyframes",
        {"checkpoint": DEV_23, "upsampler": X2_23, "distilled_lora": LORA_23},
    ),
    "a dev checkpoint and its LoRA where no distilled one is": (
        (DEV_23, LORA_23, X2_23, DEV_20, "ltx-2.4-24b-distilled.safetensors"),
        "distilled",
        {"checkpoint": DEV_23, "upsampler": X2_23, "distilled_lora": LORA_23},
    ),
    "a distilled checkpoint of an older generation before that": (
        (DEV_23, LORA_23, X2_23, "ltx-2-19b-distilled-fp8.safetensors"),
        "distilled",
        {"checkpoint": "ltx-2-19b-distilled-fp8.safetensors"},
    ),
    "fp8 where there is nothing else": (
        ("ltx-2.3-22b-dev-fp8.safetensors",),
        "one-stage",
        {"checkpoint": "ltx-2.3-22b-dev-fp8.safetensors"},
    ),
    "the full file before the transformer alone": (
        ("ltx-2.3-22b-dev_transformer_only_bf16.safetensors", DEV_23),
        "one-stage",
        {"checkpoint": DEV_23},
    ),
    "split files": (
        (
            "diffusion_models/ltx-2.3-22b-dev_transformer_only_bf16.safetensors",
            "diffusion_models/ltx-2.3-22b-dev_transformer_only_fp8_scaled.safetensors",
            "text_encoders/ltx-2.3_text_projection_bf16.safetensors",
            "text_encoders/gemma_3_12B_it.safetensors",
            "text_encoders/gemma_3_12B_it_fp8_scaled.safetensors",
            "vae/LTX23_video_vae_bf16.safetensors",
            "vae/LTX23_audio_vae_bf16.safetensors",
            "vae/taeltx2_3.safetensors",
        ),
        "one-stage",
        {
            "checkpoint": "diffusion_models/ltx-2.3-22b-dev_transformer_only_bf16.safetensors",
            "text_projection": "text_encoders/ltx-2.3_text_projection_bf16.safetensors",
            "gemma": "text_encoders/gemma_3_12B_it.safetensors",
            "video_vae": "vae/LTX23_video_vae_bf16.safetensors",
            "audio_vae": "vae/LTX23_audio_vae_bf16.safetensors",
        },
    ),
    "a Gemma folder; other sizes of it are not taken": (
        (
            DEV_23,
            "gemma-3-12b-it/config.json",
            "gemma-3-12b-it/tokenizer.json",
            "gemma-3-12b-it/model-00001-of-00005.safetensors",
            "gemma-3-4b-it/config.json",
            "gemma-3-4b-it/tokenizer.json",
            "gemma-3-4b-it/model.safetensors",
            "qwen/config.json",
            "qwen/tokenizer.json",
            "qwen/model.safetensors",
        ),
        "one-stage",
        {"checkpoint": DEV_23, "gemma": "gemma-3-12b-it"},
    ),
    "files in any case of both endings": (
        ("ltx-2.3-22b-dev.SFT", "gemma_3_12B_it.sft", X2_23.replace(".safetensors", ".Sft")),
        "two-stage",
        {
            "checkpoint": "ltx-2.3-22b-dev.SFT",
            "gemma": "gemma_3_12B_it.sft",
            "upsampler": X2_23.replace(".safetensors", ".Sft"),
        },
    ),
    "GGUF files are never taken, whatever they are": (
        (
            "ltx-2.3-22b-distilled-1.1-Q4_K_M.gguf",
            "gemma-3-12b-it-UD-Q4_K_XL.gguf",
            "ltx-2.3-spatial-upscaler-x2-1.1.gguf",
            DEV_23,
            LORA_23,
        ),
        "distilled",
        {"checkpoint": DEV_23, "distilled_lora": LORA_23},
    ),
    "other LoRAs and upsamplers are not taken for these": (
        (
            DEV_23,
            "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors",
            "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors",
            "ltx-2.3-temporal-upscaler-x2-1.0.safetensors",
            "ltx-2.3-22b-distilled-lora-384.gguf",
        ),
        "two-stage",
        {"checkpoint": DEV_23},
    ),
}


@pytest.mark.parametrize(("names", "recipe", "expected"), CASES.values(), ids=CASES.keys())
def test_the_newest_matching_set_is_picked(names: Sequence[str], recipe: str, expected: dict[str, str]) -> None:
    for order in (names, tuple(reversed(names))):
        picked = {role.value: pick.name for role, pick in select(order, recipe).picks.items()}
        assert picked == expected


def test_every_choice_is_explained_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ltx2.loading"):
        selection = select((*REPO_23, DEV_20, X2_20), "two-stage")
    reason = selection.picks[Role.CHECKPOINT].reason
    assert "ltx-2-19b-dev.safetensors is LTX-2.0" in reason
    assert "ltx-2.3-22b-distilled-1.1.safetensors is the distilled model" in reason
    reason = selection.picks[Role.UPSAMPLER].reason
    assert "ltx-2.3-spatial-upscaler-x2-1.0.safetensors is an older revision" in reason
    assert "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors is x1.5" in reason
    assert f"{X2_20} is of LTX-2.0" in reason
    assert selection.generation == "2.3"
    assert "no Gemma 3 12B text encoder" in selection.absent[Role.GEMMA]
    for pick in selection.picks.values():
        assert f"{pick.role.value}: {pick.name} ({pick.reason})" in caplog.text
    assert "gemma: none" in caplog.text


def test_what_is_there_instead_of_a_companion_is_said() -> None:
    gguf = "gemma-3-12b-it-Q4_K_M.gguf"
    said = select((DEV_23, gguf), "one-stage").absent[Role.GEMMA]
    assert said == f"no Gemma 3 12B text encoder; there is {gguf} (a GGUF file, which is not read)"
    absent = select((DEV_23, X2_20), "two-stage").absent
    assert absent[Role.UPSAMPLER] == f"no spatial x2 upsampler of LTX-2.3; there is {X2_20}"


@pytest.mark.parametrize(
    ("names", "recipe", "words"),
    [
        ((), "two-stage", "holds no dev checkpoint"),
        (("ltx-2.3-22b-distilled.safetensors",), "two-stage", "is the distilled model"),
        ((DEV_23,), "distilled", "holds no distilled checkpoint"),
        (("ltx-2.3-22b-dev-Q4_K_M.gguf",), "hq", r"ltx-2\.3-22b-dev-Q4_K_M\.gguf is a GGUF file, which is not read"),
        (("ltx-2.4-24b-dev.safetensors",), "hq", "a generation that is not supported"),
        (("ltx-video-2b-v0.9.5.safetensors", "wan2.1_t2v.safetensors"), "two-stage", "holds no dev checkpoint"),
    ],
)
def test_no_checkpoint_for_the_recipe_is_an_error(names: Sequence[str], recipe: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        select(names, recipe)


def test_an_unknown_recipe_is_an_error() -> None:
    with pytest.raises(SettingError, match="recipe"):
        select(REPO_23, "three-stage")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ltx-2.3-22b-dev", "dev"),
        ("LTX-2.3-22B-DEV_transformer_only_fp8_scaled", "dev"),
        ("ltx-2-19b-distilled-fp8", "distilled"),
        ("my_ltx2_distilled_v3", "distilled"),
        ("ltx-2.3-22b-dev-distilled-merge", "unknown"),
        ("ltx-2.3-undistilled", "unknown"),
        ("development", "unknown"),
        ("model", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_variant_is_told_from_a_name(name: str, variant: str) -> None:
    assert variant_of(name) == variant


def test_linked_folders_are_searched_and_circles_end(tmp_path: Path) -> None:
    models, disk = tmp_path / "models", tmp_path / "disk"
    for folder in (models, disk):
        folder.mkdir()
    (disk / DEV_23).touch()
    (models / "checkpoints").symlink_to(disk)
    (disk / "back").symlink_to(models)
    assert select_in_folder(models, "one-stage").files(models) == {"checkpoint": models / "checkpoints" / DEV_23}


@pytest.mark.parametrize("name", ["", "ltx-2.3-22b-dev.gguf", "ltx-2.3-22b-dev-copy.safetensors", "x/y/z.safetensors"])
def test_other_names_are_not_known(name: str) -> None:
    assert parse_name(name) is None


def test_a_folder_is_searched_to_the_bottom(tmp_path: Path) -> None:
    wanted = {
        "checkpoint": f"checkpoints/{DEV_23}",
        "upsampler": f"latent_upscale_models/ltx/{X2_23}",
        "distilled_lora": f"loras/{LORA_23}",
    }
    for name in (*wanted.values(), f"loras/old/{LORA_23}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = select_in_folder(tmp_path, "two-stage").files(tmp_path)
    assert files == {role: tmp_path / name for role, name in wanted.items()}
    with pytest.raises(CheckpointError, match="is not a folder"):
        select_in_folder(tmp_path / "nowhere", "two-stage")


class FakeHub:
    """Answers as the Hub client does; fails where it is told to."""

    def __init__(self, names: Sequence[str], root: Path, failure: Exception | None = None, at: str = "") -> None:
        self.names, self.root, self.failure, self.at = names, root, failure, at
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def _call(self, function: str, details: dict[str, Any]) -> None:
        self.calls.append((function, details))
        if self.failure and function == self.at:
            raise self.failure

    def list_repo_files(self, repo_id: str, *, revision: str | None = None) -> Sequence[str]:
        self._call("list", {"repo": repo_id, "revision": revision})
        return self.names

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        self._call("file", {"repo": repo_id, "name": filename, **options})
        return str(self.root / filename)

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self._call("snapshot", {"repo": repo_id, **options})
        return str(self.root)


def failure(name: str, status: int | None = None) -> Exception:
    """One of the Hub client's exceptions, whose constructors differ between its versions."""
    kind = getattr(hub_errors, name)
    error: Exception = kind.__new__(kind)
    Exception.__init__(error, "the server said so")
    if status is not None:
        error.response = type("Response", (), {"status_code": status})()  # type: ignore[attr-defined]
    return error


def test_a_set_is_downloaded_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = FakeHub(REPO_23, tmp_path)
    selection, paths = download_set("Lightricks/LTX-2.3", "two-stage", tmp_path, revision="main", client=hub)
    assert paths == {role: tmp_path / pick.name for role, pick in selection.picks.items()}
    assert [call[0] for call in hub.calls] == ["list", "file", "file", "file"]
    assert {call[1]["name"] for call in hub.calls[1:]} == {DEV_23, X2_23, LORA_23}
    assert all(
        call[1]["local_dir"] == tmp_path and call[1]["revision"] == "main" and call[1]["local_files_only"] is False
        for call in hub.calls[1:]
    )


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline_takes_what_is_there_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if by_environment else "0")
    for name in REPO_23:
        (tmp_path / name).touch()
    hub = FakeHub((), tmp_path)
    _, paths = download_set("Lightricks/LTX-2.3", "two-stage", offline=not by_environment, client=hub)
    assert paths[Role.CHECKPOINT] == tmp_path / DEV_23
    assert [call[0] for call in hub.calls] == ["snapshot", "file", "file", "file"]
    assert all(call[1]["local_files_only"] is True for call in hub.calls)


def test_the_text_encoder_is_downloaded_with_its_tokenizer(tmp_path: Path) -> None:
    hub = FakeHub((), tmp_path)
    assert download_gemma(client=hub) == tmp_path
    (function, details), *more = hub.calls
    assert (function, details["repo"], more) == ("snapshot", GEMMA_REPOSITORY, [])
    assert {"*.safetensors", "*.json", "tokenizer.model"} == set(details["allow_patterns"])


class NetworkError(Exception):
    """As of requests or httpx: told by the package that defines it."""


NetworkError.__module__ = "httpx._exceptions"

FAILURES: dict[str, tuple[Exception, str]] = {
    "gated": (failure("GatedRepoError", 403), "accept its licence.*hf auth login"),
    "gated, logged out": (failure("GatedRepoError", 401), "accept its licence"),
    "unknown": (failure("RepositoryNotFoundError", 404), "does not exist, or is private"),
    "name": (failure("HFValidationError"), "owner/name"),
    "revision": (failure("RevisionNotFoundError", 404), "no such revision"),
    "file": (failure("EntryNotFoundError", 404), "has no file weights.safetensors"),
    "offline": (failure("LocalEntryNotFoundError"), "cannot be reached"),
    "offline mode": (failure("OfflineModeIsEnabled"), "HF_HUB_OFFLINE"),
    "no network": (NetworkError("connect"), "cannot be reached.*Check the connection"),
    "no network, builtin": (ConnectionError("connect"), "cannot be reached"),
    "server": (failure("HfHubHTTPError", 503), "answered with an error.*503"),
    "forbidden": (failure("HfHubHTTPError", 403), "gated"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    "not writable": (PermissionError(errno.EACCES, "Permission denied"), r"cannot be written \(Permission denied\)"),
}


@pytest.mark.parametrize(("error", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_failures_say_what_to_do(tmp_path: Path, error: Exception, words: str) -> None:
    hub = FakeHub((), tmp_path, error, "file")
    with pytest.raises(LTX2Error, match=words) as caught:
        download_files("owner/name", ["weights.safetensors"], client=hub)
    assert caught.value.__cause__ is error


def test_a_mistake_of_ours_is_not_dressed_up(tmp_path: Path) -> None:
    error = TypeError("wrong argument")
    with pytest.raises(TypeError) as caught:
        download_files("owner/name", ["weights.safetensors"], client=FakeHub((), tmp_path, error, "file"))
    assert caught.value is error
