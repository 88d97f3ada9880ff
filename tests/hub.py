"""A Hub on loopback: what `huggingface_hub` needs to create, fill, list and read repositories."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = re.compile(r"^/(?:api/)?(?:(models|datasets|spaces)/)?([\w.-]+/[\w.-]+)(/.*)?$")


class Hub(ThreadingHTTPServer):
    """Repositories by (kind, name): {path: content}. Every commit replaces files; one revision, `main`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: str) -> dict[str, str]:
        """Variables with which a process knows no other Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "hf_loopback", "HF_HUB_OFFLINE": "0"}


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


def _sha(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(path.encode() + b"\0" + files[path])
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def do_POST(self) -> None:
        if self.path == "/api/repos/create":
            request = json.loads(self._body())
            name = (
                request["name"]
                if "/" in request["name"]
                else f"{request.get('organization') or 'user'}/{request['name']}"
            )
            kind = request.get("type", "model") + "s"
            self.server.repositories.setdefault((kind, name), {})
            return self._json({"url": f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{name}", "id": name})
        if self.path == "/api/validate-yaml":
            self._body()
            return self._json({"errors": [], "warnings": []})
        kind, name, rest = self._target()
        files = self.server.repositories.get((kind, name))
        if files is None:
            return self._missing("RepoNotFound")
        if rest.startswith("/preupload/"):
            paths = [file["path"] for file in json.loads(self._body())["files"]]
            return self._json(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            )
        if rest.startswith("/paths-info/"):
            asked = json.loads(self._body())["paths"]
            return self._json([self._entry(path, files) for path in asked if path in files])
        if rest.startswith("/commit/"):
            for line in self._body().splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
                elif operation["key"] == "deletedFile":
                    files.pop(operation["value"]["path"], None)
            return self._json({"commitUrl": f"{self.server.url}/{name}/commit/{_sha(files)}", "commitOid": _sha(files)})
        return self._missing("EntryNotFound")

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami-v2"):
            return self._json({"type": "user", "name": "user", "auth": {"accessToken": {"role": "write"}}})
        kind, name, rest = self._target()
        files = self.server.repositories.get((kind, name))
        if files is None:
            return self._missing("RepoNotFound")
        if rest.startswith("/resolve/"):
            path = rest.split("/", 3)[3]
            if path not in files:
                return self._missing("EntryNotFound")
            etag = hashlib.sha1(files[path]).hexdigest()
            return self._send(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": _sha(files)})
        if rest.startswith("/tree/"):
            under = rest.split("/", 3)[3] if rest.count("/") > 2 else ""
            return self._json([self._entry(path, files) for path in sorted(files) if path.startswith(under)])
        if rest in ("", "/") or rest.startswith("/revision/"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            return self._json({"id": name, "sha": _sha(files), "siblings": siblings, "private": False, "tags": []})
        return self._missing("EntryNotFound")

    do_HEAD = do_GET

    def _target(self) -> tuple[str, str, str]:
        kind, name, rest = REPOSITORY.match(self.path.split("?")[0]).groups()
        return kind or "models", name, rest or ""

    @staticmethod
    def _entry(path: str, files: dict[str, bytes]) -> dict[str, object]:
        return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
