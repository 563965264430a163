"""Headers of safetensors files: what is accepted, and what is refused with which words."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError
from ltx2_two_stage.ltx2_core.files import byte_reader, header
from ltx2_two_stage.ltx2_core.files.header import DTYPE_BITS
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from safetensors.torch import save_file


def header_bytes(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), begin: int = 0, end: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def pickled() -> bytes:
    return pickle.dumps({"weight": [1.0] * 30})


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return buffer.getvalue()


@pytest.fixture
def sound(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).to(torch.bfloat16),
        "c": torch.randn(2, 2, generator=generator).to(torch.float16),
        "scalar": torch.tensor(2.5),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"config": json.dumps({"transformer": {"x": 1}}), "model_version": "2.3.0"})
    return path, tensors


def test_the_header_says_what_the_file_holds(sound: tuple[Path, dict[str, torch.Tensor]]) -> None:
    file = SafetensorsFile.open(sound[0], "checkpoint")
    assert {name: (info.dtype, info.shape) for name, info in file.tensors.items()} == {
        "a": ("F32", (3, 5)),
        "b": ("BF16", (7,)),
        "c": ("F16", (2, 2)),
        "scalar": ("F32", ()),
    }
    assert file.nbytes == 60 + 14 + 8 + 4
    assert file.config == {"transformer": {"x": 1}}
    assert file.model_version == "2.3.0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reading_casts_to_the_models_dtype(sound: tuple[Path, dict[str, torch.Tensor]], dtype: torch.dtype) -> None:
    path, tensors = sound
    read = SafetensorsFile.open(path, "checkpoint").read(["c", "a", "b"], "cpu", dtype)
    assert list(read) and set(read) == {"a", "b", "c"}
    for name, tensor in read.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, tensors[name].to(dtype))  # one rounding, so exactly equal


def test_reading_without_a_dtype_keeps_what_the_file_has(sound: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = sound
    read = SafetensorsFile.open(path, "checkpoint").read(tensors)
    assert all(read[name].dtype == tensors[name].dtype and torch.equal(read[name], tensors[name]) for name in tensors)


def test_writing_to_a_read_tensor_leaves_the_file_alone(sound: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = sound
    file = SafetensorsFile.open(path, "checkpoint")
    file.read(["a"])["a"].zero_()
    assert torch.equal(file.read(["a"])["a"], tensors["a"])


FOREIGN = {
    "empty": (b"", "is empty"),
    "short": (b"abc", "is not a safetensors file"),
    "noise": (bytes(range(200, 256)) * 4, "is not a safetensors file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "html": (b"<!DOCTYPE html><html><head></head></html>", "web page"),
    "html-spaced": (b"\n  <html lang='en'><head></head></html>", "web page"),
    "zip": (zipped(), "zip archive"),
    "pickle": (pickled(), "pickle"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"),
    "json": (b'{"metadata": {"total_size": 1}, "weight_map": {}}', "JSON file"),
}


@pytest.mark.parametrize(("content", "words"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_of_another_format_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        SafetensorsFile.open(path, "checkpoint")
    assert "checkpoint = " in str(caught.value) and str(path) in str(caught.value)


ZEROS = bytes(8)


def numbers(digits: int) -> bytes:
    """A header whose tensor has a shape, and an end, of this many digits."""
    number = b"9" * digits
    return b'{"a":{"dtype":"F32","shape":[' + number + b'],"data_offsets":[0,' + number + b"]}}"


DAMAGED = {
    "json": (header_bytes(b'{"a": '), "not valid JSON"),
    "incomplete-entry": (header_bytes({"a": {"dtype": "F32"}}), "entry of a is incomplete"),
    "entry-is-a-list": (header_bytes({"a": [1]}), "entry of a is incomplete"),
    "unknown-dtype": (header_bytes({"a": entry("Q7")}) + ZEROS, "unknown dtype 'Q7'"),
    "dtype-is-a-list": (header_bytes({"a": {**entry(), "dtype": []}}) + ZEROS, "unknown dtype"),
    "size": (header_bytes({"a": entry(shape=(3,))}) + ZEROS, "takes 8 bytes, which does not fit F32"),
    "negative": (header_bytes({"a": entry(shape=(-2,), begin=8, end=0)}) + ZEROS, "not whole numbers"),
    "hole": (
        header_bytes({"a": entry(), "b": entry(begin=16, end=24)}) + 3 * ZEROS,
        "b starts at byte 16, expected 8",
    ),
    "overlap": (
        header_bytes({"a": entry(), "b": entry(begin=4, end=12)}) + 2 * ZEROS,
        "b starts at byte 4, expected 8",
    ),
    "truncated-data": (
        header_bytes({"a": entry(), "b": entry(begin=8, end=16)}) + ZEROS,
        "8 of 16 bytes of weights are missing",
    ),
    "truncated-header": (header_bytes({"a": entry()})[:20], "its header alone takes"),
    "trailing": (header_bytes({"a": entry()}) + ZEROS + b"xx", "2 bytes behind the last tensor"),
    "outside": (header_bytes({"a": entry(begin=8, end=16)}) + ZEROS, "a starts at byte 8, expected 0"),
    "twice": (header_bytes(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)) + ZEROS, "a is named twice"),
    "key-twice": (
        header_bytes(b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}') + ZEROS,
        "shape is named twice",
    ),
    "20-digits": (header_bytes(numbers(20)), "a has sizes that are not whole numbers"),
    "6000-digits": (header_bytes(numbers(6000)), "a has sizes that are not whole numbers"),
    "large-dimension": (header_bytes({"a": entry(shape=(2**48 + 1,))}) + ZEROS, "one larger than any file"),
    "large-product": (header_bytes({"a": entry(shape=(2**48,) * 8)}) + ZEROS, "takes 8 bytes, which does not fit"),
    "dimensions": (header_bytes({"a": entry(shape=(1,) * 9)}) + ZEROS, "a has 9 dimensions"),
    "broken-size": (header_bytes({"a": {**entry(), "shape": [2.0]}}) + ZEROS, "not whole numbers"),
    "truth-size": (header_bytes({"a": {**entry(), "shape": [True, 2]}}) + ZEROS, "not whole numbers"),
    "long-name": (header_bytes({"a" * 501: entry()}) + ZEROS, "a tensor's name has 501 characters"),
    "nested": (header_bytes(b'{"a":' + b"[" * 100_000), r"not valid JSON: nested too deeply"),
    "many-tensors": (
        header_bytes({f"{n}": entry("U8", (0,), end=0) for n in range(50_001)}),
        "lists 50,001 tensors, more than the 50,000 that are read",
    ),
    "metadata-values": (header_bytes({"__metadata__": {"config": 1}, "a": entry()}) + ZEROS, "must be text"),
    "config-json": (header_bytes({"__metadata__": {"config": "{"}, "a": entry()}) + ZEROS, "not a JSON object"),
    "config-list": (header_bytes({"__metadata__": {"config": "[]"}, "a": entry()}) + ZEROS, "not a JSON object"),
}


@pytest.mark.parametrize(("content", "words"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        SafetensorsFile.open(path, "checkpoint")


def test_a_header_that_is_too_long_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: bytes) -> None:
        raise AssertionError("the header is parsed")

    monkeypatch.setattr(header, "parse_json", refuse)
    path, most = tmp_path / "model.safetensors", 16 * 2**20
    for length, words in ((most + 1, "has a header of 16,777,217 bytes"), (2**40, "its header alone takes")):
        path.write_bytes(length.to_bytes(8, "little") + b"{")
        os.truncate(path, 8 + most + 1)  # holes: nothing is written
        with pytest.raises(CheckpointError, match=words):
            SafetensorsFile.open(path, "checkpoint")
    path.write_bytes(most.to_bytes(8, "little") + b"{")
    os.truncate(path, 8 + most)
    with pytest.raises(AssertionError, match="is parsed"):
        SafetensorsFile.open(path, "checkpoint")


def test_every_cut_of_a_sound_file_is_refused(sound: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    content = sound[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile.open(path, "checkpoint")


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    # 0x280 bytes: the file starts with the bytes 80 02, as a pickle of protocol 2 does
    text = json.dumps({"a": entry()}).encode().ljust(0x280)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + ZEROS)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert set(SafetensorsFile.open(path, "checkpoint").tensors) == {"a"}


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        SafetensorsFile.open(tmp_path / "nothing.safetensors", "checkpoint")
    with pytest.raises(CheckpointError, match="is a folder"):
        SafetensorsFile.open(tmp_path, "checkpoint")


def test_quantised_weights_are_refused_with_the_file_to_use(tmp_path: Path) -> None:
    path = tmp_path / "fp8.safetensors"
    save_file({"w": torch.zeros(4, 4).to(torch.float8_e4m3fn), "b": torch.zeros(4, dtype=torch.bfloat16)}, path)
    file = SafetensorsFile.open(path, "checkpoint")
    with pytest.raises(CheckpointError, match=r"1 of 2 are F8_E4M3.*bf16"):
        file.read(["w", "b"])
    assert set(file.read(["b"])) == {"b"}


def test_a_file_that_changed_since_it_was_opened_is_not_read(sound: tuple[Path, dict[str, torch.Tensor]]) -> None:
    file = SafetensorsFile.open(sound[0], "checkpoint")
    os.utime(sound[0], ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed on disk"):
        file.read(["a"])


@pytest.mark.parametrize("size", [0, 100], ids=["cut", "longer"])
def test_a_file_that_changes_while_it_is_read_is_an_error(
    sound: tuple[Path, dict[str, torch.Tensor]], size: int
) -> None:
    reading = SafetensorsFile.open(sound[0], "checkpoint").each(["a", "b", "c"])
    name, first = next(reading)
    os.truncate(sound[0], size and sound[0].stat().st_size + size)
    with pytest.raises(CheckpointError, match="changed on disk"):
        list(reading)
    assert torch.equal(first, sound[1][name])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says which files a process maps")
def test_no_file_is_mapped(sound: tuple[Path, dict[str, torch.Tensor]]) -> None:
    file = SafetensorsFile.open(sound[0], "checkpoint")
    read = file.read(sound[1])
    assert len(read) == 4 and str(sound[0]) not in Path("/proc/self/maps").read_text()


def test_large_tensors_are_read_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_reader, "_ALONE", 100)
    monkeypatch.setattr(byte_reader, "_CHUNK", 1000)
    expected = torch.arange(5003, dtype=torch.int32)
    save_file({"a": expected, "b": torch.zeros(0)}, tmp_path / "large.safetensors")
    file = SafetensorsFile.open(tmp_path / "large.safetensors", "checkpoint")
    ((_, found),) = file.each(["a"])
    assert torch.equal(found, expected)
    columns = torch.zeros(5003, 2, dtype=torch.int32)
    file.read_into({"a": columns[:, 1], "b": torch.ones(0)})
    assert torch.equal(columns[:, 1], expected) and not columns[:, 0].any()


def test_only_a_small_tensor_is_a_marker(tmp_path: Path) -> None:
    path = tmp_path / "markers.safetensors"
    save_file({"small": torch.arange(4, dtype=torch.uint8), "large": torch.zeros(2**16 + 1, dtype=torch.uint8)}, path)
    file = SafetensorsFile.open(path, "checkpoint")
    assert file.read_bytes("small") == bytes(range(4))
    with pytest.raises(CheckpointError, match=r"a marker of 65,537 bytes \(large\)"):
        file.read_bytes("large")


def test_an_unknown_tensor_is_named(sound: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(CheckpointError, match="no tensor z"):
        SafetensorsFile.open(sound[0], "checkpoint").read(["a", "z"])


def test_every_dtype_that_torch_can_save_is_known(tmp_path: Path) -> None:
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float64)
    dtypes += (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16, torch.uint32, torch.uint64)
    path = tmp_path / "all.safetensors"
    save_file({str(dtype): torch.zeros(3).to(dtype) for dtype in dtypes}, path)
    tensors = SafetensorsFile.open(path, "checkpoint").tensors
    assert {DTYPE_BITS[info.dtype] * 3 // 8 for info in tensors.values()} == {3, 6, 12, 24}
