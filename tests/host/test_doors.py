"""What leaves for ComfyUI's page, and what its routes let in."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from host_graphs import loader, node
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

JSON = "application/json"


def post(host: Any, path: str, body: bytes, kind: str | None = JSON) -> tuple[int, Any]:
    request = urllib.request.Request(host.url + path, body, {} if kind is None else {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())


@pytest.mark.parametrize("path", ["/ltx2/release", "/ltx2/restore", "/ltx2/mode"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"{}", "multipart/form-data; boundary=x", 415),
        (b"{}", "application/jsonp", 415),
        (b"", None, 415),
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b"null", JSON, 400),
        (b'"auto"', JSON, 400),
        (b"\xff\xfe{}", JSON, 400),
        (b'{"mode": "\xff"}', JSON, 400),
        (b"{}", JSON + "; charset=nonsense", 409),
        (b"[" * 60_000, JSON, 400),
        (b'{"mode": ' + b"9" * 5000 + b"}", JSON, 400),
        (b'{"mode": "' + b"x" * 100_000 + b'"}', JSON, 400),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_bad_body_is_refused_with_words(host: Any, path: str, body: bytes, kind: str, status: int) -> None:
    found, answer = post(host, path, body, kind)
    if status == 409:  # a good body: what becomes of it depends on what is open
        assert found in (200, 400, 409)
    else:
        assert found == status and answer["error"] and answer["fix"]


@pytest.mark.parametrize(
    "mode", [None, 5, 1e308, True, [], {}, ["auto"], "nonsense", "<b>\x1b[31m\u202e", "x" * 10_000]
)
def test_an_unknown_mode_is_refused(host: Any, mode: Any) -> None:
    status, answer = post(host, "/ltx2/mode", json.dumps({"mode": mode}).encode())
    text = json.dumps(answer, ensure_ascii=False)
    assert status == 400 and "is no device mode" in answer["error"]
    assert not set("<>\x1b\u202e") & set(text) and len(text) < 6000


MARKUP = "<img src=x onerror=alert(1)>\x1b[5;35m\u202e"


@pytest.fixture
def hostile_files(host: Any) -> Iterator[None]:
    """A LoRA and a text encoder full of markup, listed while the test runs."""
    models = host.base / "models"
    lora, encoder = models / "loras" / "hostile.safetensors", models / "text_encoders" / "gemma-hostile"
    tensors = {f"{MARKUP}.{key}": tensor for key, tensor in load_file(models / "loras" / "style.safetensors").items()}
    save_file(tensors, lora, {"model_version": MARKUP})
    shutil.copytree(models / "text_encoders" / "gemma-2.3", encoder)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        text = (encoder / name).read_text(encoding="utf-8")
        (encoder / name).write_text(text.replace('"<bos>"', json.dumps(MARKUP)), encoding="utf-8")
    yield
    lora.unlink()
    shutil.rmtree(encoder)


@pytest.mark.usefixtures("hostile_files")
def test_text_of_a_file_does_not_reach_the_page(host: Any) -> None:
    for file, encoder in (("hostile.safetensors", "gemma-2.3"), ("style.safetensors", "gemma-hostile")):
        prompt = {
            "loader": loader(text_encoder=encoder),
            "lora": node("LTX2TwoStageLoRA", pipeline=["loader", 0], lora=file, strength=1.0, stage="both"),
            "text": node("LTX2TwoStageTextEncode", pipeline=["lora", 0], prompt="a", negative_prompt=""),
            "show": node("LTX2TwoStageReport", pipeline=["lora", 0], after=["text", 0]),
        }
        answer = host.post("/prompt", {"prompt": prompt})
        status = host.wait(answer["prompt_id"])["status"] if "prompt_id" in answer else answer
        seen = json.dumps(status)
        assert "<img" not in seen and "\\u001b" not in seen and "\\u202e" not in seen
        failures = [told for _, told in status.get("messages", []) if "exception_message" in told]
        assert all(str(host.base) not in failure["exception_message"] for failure in failures)
    log = host.log
    assert "\x1b[5;35m" not in log and "onerror=alert(1)>" not in log
