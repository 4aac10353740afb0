"""A Hugging Face hub of one repository on this machine, as far as uploads and downloads need it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Holds `files` by name, the request that `made` the repository, and the `tokens` it got."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.made = files, {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("/resolve/main/")[2] or self.path.partition(f"/{COMMIT}/")[2]
        if "/resolve/" in self.path and name in self.server.files:
            content = self.server.files[name]
            tag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})
        elif self.path.startswith("/api/models/"):
            files = [{"rfilename": name} for name in self.server.files]
            self.answer(200, {"id": "me/mine", "sha": COMMIT, "siblings": files, "tags": []})
        else:
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})

    def do_POST(self) -> None:
        body = self.body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.answer(200, {"url": f"{self.server.address}/me/mine"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            whole = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": name, **whole} for name in names]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                self.keep(json.loads(line))
            url = f"{self.server.address}/me/mine/commit/{COMMIT}"
            self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def keep(self, line: dict[str, Any]) -> None:
        if line["key"] == "file":
            self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while count := int(self.rfile.readline(), 16):
            content += self.rfile.read(count)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[Hub]:
    """Serve a hub until the block ends."""
    hub = Hub({} if files is None else files)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def on_hub(home: Path, address: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python in `home` with a hub and a cache of its own, and a token that is none."""
    env = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_none", "HF_HOME": str(home)}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)
