"""Runs a workflow in API format on a ComfyUI and fetches what it makes. Needs Python 3.10 and nothing else.

    python queue_workflow.py ltx2_two_stage_text_to_video.json LTX2TwoStageDenoise.seed=7 --output clips

docs/api.md explains what it does, request by request.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

Workflow = dict[str, dict[str, Any]]
POLL_SECONDS = 0.5


class RunError(Exception):
    """ComfyUI refused the workflow or could not finish it; the message says why."""


class ComfyUI:
    """The requests of ComfyUI's API that a run needs."""

    def __init__(self, host: str) -> None:
        self.host = host.rstrip("/")

    def queue(self, workflow: Workflow) -> str:
        """Id of the queued run.

        Raises:
            RunError: an input is wrong; each is named.
        """
        answer = self._json("/prompt", {"prompt": workflow, "client_id": uuid.uuid4().hex})
        if "prompt_id" not in answer:
            raise RunError("\n".join(_refusals(answer)))
        return str(answer["prompt_id"])

    def wait(self, run: str, seconds: float) -> dict[str, Any]:
        """The outputs of a run by node id, once it has ended.

        Raises:
            RunError: a node failed, somebody stopped the run, or it takes longer than ``seconds``.
        """
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            history = self._json(f"/history/{run}")
            if run in history:
                return _outputs(history[run])
            time.sleep(POLL_SECONDS)
        raise RunError(f"The run has not ended after {seconds:g} seconds; it goes on in ComfyUI.")

    def stop(self, run: str) -> None:
        """Takes a run out of the queue, and ends it where it has begun."""
        self._json("/queue", {"delete": [run]})
        self._json("/interrupt", {"prompt_id": run})

    def upload(self, path: Path) -> str:
        """Copies an image, video or sound into ComfyUI's input folder; its name there."""
        boundary, name = uuid.uuid4().hex, path.name.replace('"', "%22")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        body = head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + path.read_bytes()
        body += f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return str(self._json("/upload/image", body, kind)["name"])

    def fetch(self, file: Mapping[str, str], folder: Path) -> Path:
        """Downloads an output into ``folder``; where it is then."""
        query = urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        target = folder / Path(file["filename"]).name
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{self.host}/view?{query}") as answer:
            target.write_bytes(answer.read())
        return target

    def _json(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.host + path, data, dict(headers or {"Content-Type": "application/json"}))
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refusal:
            text = refusal.read()
            if not text.lstrip().startswith(b"{"):
                raise RunError(f"{self.host}{path}: {refusal}") from None
        except urllib.error.URLError as error:
            raise RunError(f"{self.host} does not answer: {error.reason}. Is ComfyUI running there?") from None
        return json.loads(text) if text else {}


def change(workflow: Workflow, setting: str) -> None:
    """Sets one input: ``NODE.INPUT=VALUE``, the node by its id, its type or its title.

    Raises:
        RunError: there is no such node or input, or more than one.
    """
    path, equals, text = setting.partition("=")
    name, dot, field = path.partition(".")
    if not equals or not dot:
        raise RunError(f"{setting!r} is not of the form NODE.INPUT=VALUE.")
    found = [key for key, node in workflow.items() if name in (key, node["class_type"], _title(node))]
    if len(found) != 1:
        known = ", ".join(f"{key} ({node['class_type']})" for key, node in workflow.items())
        raise RunError(f"{name!r} names {len(found)} nodes, not one. The workflow has {known}.")
    inputs = workflow[found[0]]["inputs"]
    if field not in inputs:
        raise RunError(f"{name} has no input {field!r}. It has {', '.join(inputs)}.")
    try:
        inputs[field] = json.loads(text)
    except json.JSONDecodeError:
        inputs[field] = text


def _title(node: Mapping[str, Any]) -> str:
    return str(node.get("_meta", {}).get("title", ""))


def _refusals(answer: Mapping[str, Any]) -> Iterator[str]:
    error = answer.get("error", answer)
    yield str(error.get("message", error) if isinstance(error, dict) else error)
    for key, node in answer.get("node_errors", {}).items():
        # A node's own check is repeated for each input that it looks at
        own = "custom_validation_failed"
        words = [
            problem["details"].partition(" - ")[2]
            if problem["type"] == own
            else f"{problem['message']}: {problem['details']}"
            for problem in node["errors"]
        ]
        for reason in dict.fromkeys(words):
            yield f"{key} ({node['class_type']}): {reason}"


def _outputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    messages = dict(entry["status"]["messages"])
    if failed := messages.get("execution_error"):
        raise RunError(f"{failed['node_id']} ({failed['node_type']}): {failed['exception_message'].strip()}")
    if entry["status"]["status_str"] != "success":
        raise RunError("The run was stopped.")
    return dict(entry["outputs"])


def _files(outputs: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """Saved files; previews are left out."""
    for shown in outputs.values():
        for items in shown.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and item.get("type") == "output":
                    yield item


def _texts(outputs: Mapping[str, Any]) -> Iterator[str]:
    for shown in outputs.values():
        yield from (text for text in shown.get("text", []) if isinstance(text, str))


def run(arguments: argparse.Namespace) -> None:
    host = ComfyUI(arguments.host)
    workflow: Workflow = json.loads(arguments.workflow.read_text(encoding="utf-8"))
    for setting in arguments.settings:
        change(workflow, setting)
    for path in arguments.upload:
        sys.stdout.write(f"uploaded {host.upload(path)}\n")
    number = host.queue(workflow)
    sys.stdout.write(f"queued {number}\n")
    sys.stdout.flush()  # whoever reads it over a pipe need not wait for the end
    try:
        outputs = host.wait(number, arguments.timeout)
    except KeyboardInterrupt:
        host.stop(number)
        raise RunError("Stopped.") from None
    for text in _texts(outputs) if arguments.texts else ():
        sys.stdout.write(f"{text}\n")
    for file in _files(outputs):
        place = (
            host.fetch(file, arguments.output) if arguments.output else "/".join((file["subfolder"], file["filename"]))
        )
        sys.stdout.write(f"{place}\n")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs a workflow in API format on a ComfyUI.")
    parser.add_argument("workflow", type=Path, help="a workflow in API format, such as those beside this script")
    parser.add_argument("settings", nargs="*", metavar="NODE.INPUT=VALUE", help="inputs to change")
    parser.add_argument("--host", default="http://127.0.0.1:8188", help="default: %(default)s")
    parser.add_argument("--upload", type=Path, action="append", default=[], metavar="FILE", help="an input to copy")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to download what was saved")
    parser.add_argument("--texts", action="store_true", help="also what nodes show as text, such as LTX-2 Report")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="default: %(default)g")
    try:
        run(parser.parse_intermixed_args(words))
    except RunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
