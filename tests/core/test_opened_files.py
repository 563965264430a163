"""Files of every role: what is no model file is refused by name before a module is made; what changes is noticed."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.ltx2_core.errors import CheckpointError
from ltx2_two_stage.ltx2_core.loading.artifacts import select_in_folder
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import write_single_file
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource
from ltx2_two_stage.ltx2_core.types import Component
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, devices and open files behave otherwise on Windows")

PARTS = {"video_vae": "vae.", "audio_vae": ("audio_vae.", "vocoder."), "text_projection": "text_embedding_projection."}
# Role -> what is built from its file
ROLES: dict[str, Component] = {
    "checkpoint": Component.TRANSFORMER,
    "gemma": Component.TEXT_ENCODER,
    "upsampler": Component.UPSAMPLER,
    "distilled_lora": Component.TRANSFORMER,
    "lora": Component.TRANSFORMER,
    "video_vae": Component.VIDEO_DECODER,
    "audio_vae": Component.VOCODER,
    "text_projection": Component.TEXT_CONNECTOR,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def files(tiny: TinyFiles) -> ModelFiles:
    """A file for every role; the text encoder is a single one."""
    tensors = load_file(tiny.checkpoint)
    with safe_open(tiny.checkpoint, "pt") as opened:
        metadata = dict(opened.metadata())
    paths = {name: tiny.folder / f"{name}.safetensors" for name in PARTS}
    for name, start in PARTS.items():
        save_file({key: tensor for key, tensor in tensors.items() if key.startswith(start)}, paths[name], metadata)
    gemma = tiny.folder / "gemma.safetensors"
    write_single_file(tiny.gemma, gemma)
    return ModelFiles(tiny.checkpoint, gemma, tiny.upsampler, tiny.distilled_lora, (LoRASource(tiny.lora),), **paths)


def path_of(files: ModelFiles, role: str) -> Path:
    return files.loras[0].path if role == "lora" else Path(getattr(files, role))


def with_file(files: ModelFiles, role: str, path: Path) -> ModelFiles:
    return replace(files, **({"loras": (LoRASource(path),)} if role == "lora" else {role: path}))


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: nn.Module, *more: Any, **others: Any) -> None:
        raise AssertionError("a module is made")

    monkeypatch.setattr(nn.Module, "__init__", refuse)


def refusal(files: ModelFiles, role: str, path: Path) -> str:
    """What is said of a set that is sound but for one file."""
    with pytest.raises(CheckpointError) as caught:
        ModelSet.open(with_file(ModelFiles(files.checkpoint, files.gemma), role, path), torch.bfloat16)
    assert caught.value.setting == role.replace("_", "-")
    assert str(path) in str(caught.value) and caught.value.fix
    return caught.value.problem


FOREIGN: dict[str, tuple[bytes, str]] = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(64), "is a GGUF file"),
    "page": (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html><head></head></html>", "is a web page"),
    "text": (b"Entry not found, you need to be logged in", "is a text that begins with 'Entry not found"),
    "archive": (b"PK\x03\x04" + bytes(64), "is a zip archive"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.usefixtures("no_modules")
def test_what_people_load_by_mistake_is_named(files: ModelFiles, tmp_path: Path, role: str) -> None:
    for name, (content, words) in FOREIGN.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert refusal(files, role, path).startswith(words)
    assert refusal(files, role, tmp_path / "none.safetensors") == "does not exist"


@pytest.mark.parametrize("role", ["checkpoint", "gemma", "upsampler", "distilled_lora"])
@pytest.mark.usefixtures("no_modules")
def test_a_pointer_that_is_chosen_from_a_folder_is_named(files: ModelFiles, tmp_path: Path, role: str) -> None:
    names = {
        "checkpoint": "ltx-2.3-22b-dev.sft",
        "gemma": "text_encoders/gemma_3_12B_it.SFT",
        "upsampler": "ltx-2.3-spatial-upscaler-x2-1.1.sft",
        "distilled_lora": "ltx-2.3-22b-distilled-lora-384.Safetensors",
    }
    (tmp_path / "text_encoders").mkdir()
    for own, name in names.items():
        shutil.copy2(path_of(files, own), tmp_path / name)
    (tmp_path / names[role]).write_bytes(FOREIGN["LFS"][0])
    chosen: dict[str, Any] = dict(select_in_folder(tmp_path, "two-stage").files(tmp_path))
    with pytest.raises(CheckpointError, match="is a Git LFS pointer") as caught:
        ModelSet.open(ModelFiles(**chosen), torch.bfloat16)
    assert (caught.value.setting, caught.value.path) == (role.replace("_", "-"), tmp_path / names[role])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.usefixtures("no_modules")
def test_what_is_no_file_is_not_read(
    files: ModelFiles, tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe.safetensors")
    Path("folder.safetensors").mkdir()
    Path("link.safetensors").symlink_to("pipe.safetensors")
    Path("loop.safetensors").symlink_to("loop.safetensors")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.safetensors")
        assert refusal(files, role, Path("pipe.safetensors")) == "is a pipe, not a file"
        assert refusal(files, role, Path("link.safetensors")) == "is a pipe, not a file"
        assert refusal(files, role, Path("socket.safetensors")) == "is a socket, not a file"
    for device in ("/dev/zero", "/dev/null"):
        assert refusal(files, role, Path(device)) == "is a device, not a file"
    folder = "holds no config.json" if role == "gemma" else "is a folder"
    assert refusal(files, role, Path("folder.safetensors")) == folder
    assert refusal(files, role, Path("loop.safetensors")).startswith("cannot be read")


@pytest.mark.parametrize(
    ("role", "other", "words"),
    [
        ("checkpoint", "lora", "is LoRA, not an LTX-2 full model"),
        ("gemma", "upsampler", "is not Gemma 3"),
        ("upsampler", "lora", r"is no latent upsampler \(LoRA\)"),
        ("distilled_lora", "upsampler", "is no LoRA"),
        ("lora", "checkpoint", "is no LoRA"),
        ("video_vae", "audio_vae", "is audio VAE and vocoder, not an LTX-2 video VAE"),
        ("audio_vae", "gemma", "is Gemma 3 text encoder, not an LTX-2 audio VAE"),
        ("text_projection", "video_vae", "is video VAE, not an LTX-2 text projection"),
    ],
)
@pytest.mark.usefixtures("no_modules")
def test_a_file_of_another_kind_is_named_before_a_module_is_made(
    files: ModelFiles, role: str, other: str, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        ModelSet.open(with_file(files, role, path_of(files, other)), torch.bfloat16)


@pytest.mark.usefixtures("no_modules")
def test_a_sound_set_makes_modules(files: ModelFiles) -> None:
    # Else the tests above would hold whatever is made
    with pytest.raises(AssertionError, match="a module is made"):
        ModelSet.open(files, torch.bfloat16)


def option(name: str, path: Path) -> str:
    return f"{path}:1.0" if name == "lora" else str(path)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.usefixtures("no_modules")
def test_the_command_line_refuses_a_missing_file_before_a_module_is_made(
    files: ModelFiles, tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"checkpoint": files.checkpoint, "gemma": files.gemma, role: tmp_path / "none.safetensors"}
    options = [word for name, path in given.items() for word in (f"--{name.replace('_', '-')}", option(name, path))]
    output = ["--output", str(tmp_path / "clip.mp4"), "--device", "cpu", "--recipe", "one-stage"]
    assert cli.main(["generate", *options, "--prompt", "a dog", *output]) == 2
    said = capsys.readouterr().err
    assert f"error: {role.replace('_', '-')} = '{tmp_path}/none.safetensors': does not exist" in said


def put_another(path: Path) -> None:
    """Another file in its place, of the same size and time."""
    status = path.stat()
    copy = path.with_name("another")
    copy.write_bytes(path.read_bytes()[:-8] + bytes(8))
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(path)


def rewrite(path: Path) -> None:
    """The same file and size, with other bytes."""
    content, later = path.read_bytes(), path.stat().st_mtime_ns + 10**9
    path.write_bytes(content[:-8] + bytes(8))
    os.utime(path, ns=(later, later))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lead_elsewhere(path: Path) -> None:
    """A link that leads to another file, as the next revision of a download does."""
    other = Path(shutil.copy2(path, path.with_name("other")))
    path.unlink()
    path.symlink_to(other)


CHANGES = (put_another, rewrite, cut, lead_elsewhere, Path.unlink)


@contextmanager
def changed(path: Path, change: Callable[[Path], None]) -> Iterator[None]:
    """A file is changed, and then again the one that it was, with its inode and its time."""
    content, status, kept = path.read_bytes(), path.stat(), path.with_name("kept")
    kept.hardlink_to(path)
    change(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        kept.write_bytes(content)
        os.utime(kept, ns=(status.st_atime_ns, status.st_mtime_ns))
        kept.rename(path)


@pytest.fixture(scope="module")
def own(files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Copies that tests may change."""
    return copied(files, tmp_path_factory.mktemp("own"))


def copied(files: ModelFiles, folder: Path) -> ModelFiles:
    for role in ROLES:
        files = with_file(files, role, Path(shutil.copy2(path_of(files, role), folder / f"{role}.safetensors")))
    return files


@pytest.fixture(scope="module")
def models(own: ModelFiles) -> ModelSet:
    return ModelSet.open(own, torch.bfloat16)


@pytest.mark.parametrize("role", ROLES)
def test_a_file_that_changes_between_opening_and_first_use_is_named(
    own: ModelFiles, models: ModelSet, role: str
) -> None:
    path = path_of(own, role)
    *others, last = uses(models, role)
    for change, use in [*((put_another, use) for use in others), *((change, last) for change in CHANGES)]:
        with changed(path, change), pytest.raises(CheckpointError, match=GONE) as caught:
            use()
        assert (caught.value.setting, caught.value.path) == (role.replace("_", "-"), path)
    last()  # else it would be refused for another reason


GONE = r"changed on disk|does not exist"


def uses(models: ModelSet, role: str) -> list[Callable[[], object]]:
    """How a file of a role comes to be read for the first time."""
    component = ROLES[role]
    if role == "gemma":
        return [lambda: models.build(component, "cpu"), models.tokenizer]
    if "lora" in role:
        (lora,) = (a.lora for a in models.adapters if (a.source is None) == (role == "distilled_lora"))
        return [lambda: lora.read("cpu", torch.bfloat16)]
    empty = models.skeleton(component).to_empty(device="cpu").state_dict()
    return [lambda: models.build(component, "cpu"), lambda: models.fill(component, empty)]


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_changed_file_of_the_text_encoders_folder_is_named(tiny: TinyFiles, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny.gemma, tmp_path / "gemma"))
    source = GemmaSource.open(folder)
    for change in CHANGES:
        for use in (source.load_tokenizer, lambda: source.load_model(torch.bfloat16, "cpu")):
            with changed(folder / name, change), pytest.raises(CheckpointError, match=GONE) as caught:
                use()
            assert (caught.value.setting, caught.value.path) == ("gemma", folder / name)


def test_a_file_that_appears_beside_the_text_encoder_is_named(tiny: TinyFiles, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.gemma, tmp_path / "gemma"))
    (folder / "tokenizer_config.json").rename(folder / "kept")
    source = GemmaSource.open(folder)
    assert source.load_tokenizer().size
    (folder / "kept").rename(folder / "tokenizer_config.json")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*changed on disk"):
        source.load_tokenizer()


def touched(tensors: Iterable[Tensor]) -> int:
    """How a process ends that reads every byte of these tensors."""
    child = os.fork()
    if not child:
        faulthandler.disable()
        try:
            for tensor in tensors:
                tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_files_that_are_cut_while_their_weights_are_used_change_nothing(files: ModelFiles, tmp_path: Path) -> None:
    own = copied(files, tmp_path)
    models = ModelSet.open(own, torch.bfloat16)  # the files' own dtype, in which nothing has to be converted
    modules = [models.build(component, "cpu") for component in Component]
    for role in ROLES:
        os.truncate(path_of(own, role), 0)
    assert touched(tensor for module in modules for tensor in (*module.parameters(), *module.buffers())) == 0
    for component in Component:
        with pytest.raises(CheckpointError, match="changed on disk"):
            models.build(component, "cpu")


def test_a_file_that_is_mapped_would_be_noticed(tmp_path: Path) -> None:
    # Else the test above would hold whatever is mapped
    path = tmp_path / "mapped"
    path.write_bytes(bytes(2**16))
    mapped = torch.from_file(str(path), shared=True, size=2**16, dtype=torch.uint8)
    os.truncate(path, 0)
    assert touched([mapped]) == -signal.SIGBUS
