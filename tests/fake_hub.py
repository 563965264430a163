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
        ranges: where those that wanted a part of a file began.
        commit: what every branch means now.
        wrong_sum: paths whose bytes are not those that the hub states.
        cut: bytes of a file after which every connection breaks; None sends all.
        status: what every request is answered with in place of the truth, where that is not 0.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.wrong_size: dict[str, int] = {}
        self.pause = 0.0
        self.asked: list[str] = []
        self.ranges: list[int] = []
        self.commit = COMMIT
        self.wrong_sum: set[str] = set()
        self.cut: int | None = None
        self.status = 0
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
        return {
            "_id": "0",
            "id": repository,
            "modelId": repository,
            "sha": self.commit,
            "siblings": siblings,
            "tags": [],
        }

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
                if hub.status:
                    self._refuse(hub.status, "")
                    return
                if path.startswith("api/models/"):
                    name = "/".join(path.split("/")[2:4])
                    if name in hub.files:
                        self._send(json.dumps(hub.info(name)).encode(), with_body, "application/json")
                        return
                repository, _, rest = path.partition("/resolve/")
                name = rest.partition("/")[2]
                data = hub.files.get(repository, {}).get(name)
                if repository in hub.gated:
                    self._refuse(403, "GatedRepo")
                elif data is None:
                    self._refuse(404, "EntryNotFound" if repository in hub.files else "RepoNotFound")
                else:
                    self._send(data, with_body, "application/octet-stream", name in hub.wrong_sum)

            def _refuse(self, status: int, code: str) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _send(self, data: bytes, with_body: bool, kind: str, damaged: bool = False) -> None:
                wanted, etag, whole = self.headers.get("Range"), hashlib.sha256(data).hexdigest(), len(data)
                begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
                if wanted:
                    hub.ranges.append(begin)
                data = (data[:-1] + bytes([data[-1] ^ 1]) if damaged else data)[begin:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                if wanted:
                    self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", hub.commit)
                self.end_headers()
                if hub.cut is not None and with_body and kind != "application/json":
                    self.wfile.write(data[: hub.cut])
                    self.connection.close()
                    return
                for at in range(0, len(data) if with_body else 0, 1_000_000):
                    if kind != "application/json":
                        time.sleep(hub.pause)
                    try:
                        self.wfile.write(data[at : at + 1_000_000])
                    except OSError:  # the client was stopped
                        return

        return Handler
