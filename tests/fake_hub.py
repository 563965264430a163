"""A Hugging Face Hub on this machine: what its client asks for when it lists and downloads files, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0" * 40


class FakeHub:
    """Repositories as {name: {path: bytes}}.

    Attributes:
        gated: repositories whose files are refused.
        pause: seconds before each MB, so that a download can be watched and stopped.
        wrong_size: what is said of a file's size where that is not true.
        asked: paths of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.wrong_size: dict[str, int] = {}
        self.pause = 0.0
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def info(self, repository: str) -> dict[str, Any]:
        files = self.files[repository]
        siblings = [
            {"rfilename": path, "size": self.wrong_size.get(path, len(data)), "blobId": "0"}
            for path, data in files.items()
        ]
        return {"_id": "0", "id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                path = unquote(self.path.split("?")[0]).strip("/")
                hub.asked.append(path)
                if path.startswith("api/models/"):
                    name = "/".join(path.split("/")[2:4])
                    if name in hub.files:
                        self._send(json.dumps(hub.info(name)).encode(), with_body, "application/json")
                        return
                repository, _, rest = path.partition("/resolve/")
                data = hub.files.get(repository, {}).get(rest.partition("/")[2])
                if repository in hub.gated:
                    self._refuse(403, "GatedRepo")
                elif data is None:
                    self._refuse(404, "EntryNotFound" if repository in hub.files else "RepoNotFound")
                else:
                    self._send(data, with_body, "application/octet-stream")

            def _refuse(self, status: int, code: str) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _send(self, data: bytes, with_body: bool, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                for begin in range(0, len(data) if with_body else 0, 1_000_000):
                    if kind != "application/json":
                        time.sleep(hub.pause)
                    try:
                        self.wfile.write(data[begin : begin + 1_000_000])
                    except OSError:  # the client was stopped
                        return

        return Handler
