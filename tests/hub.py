"""A Hub on loopback: what `huggingface_hub` needs to create, fill, list and read repositories, and its faults.

Files are stored in the repository ("regular") or, those of `Hub.lfs` suffixes, in a store of large files. A commit
makes a new revision; branches, pull requests and commits can be read. `Hub.faults` makes requests fail.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit

TARGET = re.compile(r"^/(?:api/)?(?:(models|datasets|spaces)/)?([\w.-]+/[\w.-]+?)(\.git)?(/.*)?$")


class Repository:
    """Branches by name, each a dict of contents by path, and all commits."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.pull_requests: list[dict[str, str]] = []
        self.private = False
        self.lock = threading.Lock()

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.branches.get(revision, self.commits.get(revision))

    def head(self, revision: str) -> str:
        """The id of the files' state, which can be read from then on."""
        files = self.files(revision)
        digest = hashlib.sha1(revision.encode() if not files else b"")
        for path in sorted(files):
            digest.update(path.encode() + b"\0" + hashlib.sha1(files[path]).digest())
        self.commits[digest.hexdigest()] = dict(files)
        return digest.hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories by (kind, name).

    Args:
        lfs: suffixes of the files that are uploaded to the store of large files.
    """

    daemon_threads = True

    def __init__(self, lfs: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lfs = lfs
        self.store: dict[str, bytes] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        # Drawn for every request that writes: None, an HTTP status, "cut" or "cut after".
        self.faults: Iterator[int | str | None] = iter(())
        self.faults_injected: list[int | str] = []
        # Drawn for every request that reads a file: whether it is cut in the middle.
        self.cuts: Iterator[bool] = iter(())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[kind, name].files(revision)

    def add(self, kind: str, name: str, files: dict[str, bytes]) -> None:
        """Make a repository of these files."""
        self.repositories[kind, name] = repository = Repository()
        repository.branches["main"] = dict(files)

    def environment(self, home: str) -> dict[str, str]:
        """Variables with which a process knows no other Hub."""
        xet = {"HF_HUB_DISABLE_XET": "1"} if self.lfs else {}
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_loopback",
            "HF_HUB_OFFLINE": "0",
            **xet,
        }


@contextmanager
def running_hub(lfs: tuple[str, ...] = ()) -> Iterator[Hub]:
    with Hub(lfs) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut_in_the_middle: bool = False
    ) -> None:
        if self.cut_after:
            return self._cut()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut_in_the_middle else body)
        if cut_in_the_middle:
            self._cut()
        return None

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _begin(self) -> str:
        """The path without its query; an injected fault is answered before it is returned empty."""
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.server.requests.append((self.command, self.path))
        self.cut_after = False
        return unquote(parts.path)

    def _failed(self) -> bool:
        """Whether this request, which writes, is made to fail."""
        fault = next(self.server.faults, None)
        if fault is None:
            return False
        self.server.faults_injected.append(fault)
        self.cut_after = fault == "cut after"
        if self.cut_after:
            return False
        self._body()
        if fault == "cut":
            self._cut()
        else:
            self._send(fault, b"{}", {"Retry-After": "0"})
        return True

    def do_PUT(self) -> None:
        path = self._begin()
        if not self._failed():
            content = self._body()
            if hashlib.sha256(content).hexdigest() != path.rpartition("/")[2]:
                return self._send(400, b"another content")
            self.server.store[path.rpartition("/")[2]] = content
            self._send(200, b"")
        return None

    def do_POST(self) -> None:
        path = self._begin()
        if self._failed():
            return None
        if path == "/api/repos/create":
            return self._create(json.loads(self._body()))
        if path == "/api/validate-yaml":
            self._body()
            return self._json({"errors": [], "warnings": []})
        kind, name, rest = self._target(path)
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            self._body()
            return self._missing("RepoNotFound")
        if rest == "/info/lfs/objects/batch":
            return self._lfs_batch(json.loads(self._body())["objects"])
        if rest == "/discussions":
            request = json.loads(self._body())
            repository.pull_requests.append({"title": request["title"]})
            number = len(repository.pull_requests)
            repository.branches[f"refs/pr/{number}"] = dict(repository.branches["main"])
            return self._json({"num": number})
        action, revision = re.match(r"/([\w-]+)/(.*)", rest).groups()
        files = repository.files(revision)
        if action == "preupload":
            return self._preupload(json.loads(self._body())["files"], files)
        if action == "paths-info":
            asked = json.loads(self._body())["paths"]
            return self._json([self._entry(path, files) for path in asked if path in files])
        if action == "commit":
            return self._commit(repository, revision, self._url(kind, name))
        return self._missing("EntryNotFound")

    def _url(self, kind: str, name: str) -> str:
        return f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{name}"

    def _create(self, request: dict) -> None:
        owner = "" if "/" in request["name"] else f"{request.get('organization') or 'user'}/"
        kind, name = request.get("type", "model") + "s", owner + request["name"]
        answer = {"url": self._url(kind, name), "id": name}
        if (kind, name) in self.server.repositories:
            return self._json({**answer, "error": "exists"}, 409)
        self.server.repositories[kind, name] = Repository()
        self.server.repositories[kind, name].private = bool(
            request.get("private") or request.get("visibility") == "private"
        )
        return self._json(answer)

    def _preupload(self, asked: list[dict], files: dict[str, bytes]) -> None:
        modes = []
        for file in asked:
            large = file["path"].endswith(self.server.lfs or ("no suffix",))
            mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in files:
                mode["oid"] = self._entry(file["path"], files)["oid"]
                if large:
                    mode["oid"] = hashlib.sha256(files[file["path"]]).hexdigest()
            modes.append(mode)
        self._json({"files": modes})

    def _lfs_batch(self, objects: list[dict]) -> None:
        answers = []
        for item in objects:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.server.store:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/store/{item['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def _commit(self, repository: Repository, revision: str, url: str) -> None:
        operations = [json.loads(line) for line in self._body().splitlines()]
        with repository.lock:
            parent = next(op["value"].get("parentCommit") for op in operations if op["key"] == "header")
            if parent and parent != repository.head(revision):
                return self._json({"error": "the branch has moved"}, 412)
            files = dict(repository.branches[revision])
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = self.server.store[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del files[value["path"]]
            repository.branches[revision] = files
            head = repository.head(revision)
        return self._json({"commitUrl": f"{url}/commit/{head}", "commitOid": head})

    def do_GET(self) -> None:
        path = self._begin()
        if path.startswith("/api/whoami-v2"):
            return self._json({"type": "user", "name": "user", "auth": {"accessToken": {"role": "write"}}})
        kind, name, rest = self._target(path)
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            return self._missing("RepoNotFound")
        if rest.startswith("/discussions"):
            return self._discussions(repository, kind, name, rest)
        action, revision, inner = self._place(rest, repository)
        files = repository.files(revision)
        if files is None:
            return self._missing("RevisionNotFound")
        if action == "resolve":
            return self._resolve(inner, files, repository.head(revision))
        if action == "tree":
            return self._tree(inner, files)
        if action in ("", "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            about = {"id": name, "sha": repository.head(revision), "siblings": siblings, "tags": []}
            return self._json({**about, "private": repository.private})
        return self._missing("EntryNotFound")

    do_HEAD = do_GET

    def _target(self, path: str) -> tuple[str, str, str]:
        match = TARGET.match(path)
        kind, name, _, rest = match.groups() if match else ("models", "", "", "")
        return kind or "models", name, rest or ""

    def _place(self, rest: str, repository: Repository) -> tuple[str, str, str]:
        """Action, revision and path; a revision may hold slashes."""
        action, _, place = rest.strip("/").partition("/")
        for revision in (*repository.branches, *repository.commits):
            if place == revision or place.startswith(f"{revision}/"):
                return action, revision, place[len(revision) + 1 :]
        return action, place.partition("/")[0] or "main", place.partition("/")[2]

    def _discussions(self, repository: Repository, kind: str, name: str, rest: str) -> None:
        listed = [
            {
                "num": number,
                "title": pull_request["title"],
                "author": {"name": "user"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "draft",
                "repo": {"name": name, "type": kind.removesuffix("s")},
                "isPullRequest": True,
            }
            for number, pull_request in zip(count(1), repository.pull_requests, strict=False)
        ]
        if rest == "/discussions":
            return self._json({"count": len(listed), "start": 0, "discussions": listed})
        details = {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "events": []}
        return self._json({**listed[int(rest.rpartition("/")[2]) - 1], **details})

    def _resolve(self, path: str, files: dict[str, bytes], head: str) -> None:
        if path not in files:
            return self._missing("EntryNotFound")
        content = files[path]
        status, headers = (
            200,
            {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": head,
                "Accept-Ranges": "bytes",
            },
        )
        if asked := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = asked.groups()
            start = int(first) if first else max(len(content) - int(last), 0)
            stop = min(int(last) + 1, len(content)) if first and last else len(content)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status, content = 206, content[start:stop]
        cut = self.command == "GET" and next(self.server.cuts, False)
        return self._send(status, content, headers, cut_in_the_middle=cut)

    def _tree(self, under: str, files: dict[str, bytes]) -> None:
        prefix = f"{under}/" if under else ""
        entries = [self._entry(path, files) for path in sorted(files) if path.startswith(prefix)]
        folders = {
            prefix + "/".join(parts[:depth])
            for path in files
            if path.startswith(prefix)
            for parts in [path.removeprefix(prefix).split("/")]
            for depth in range(1, len(parts))
        }
        if not entries and under:
            return self._missing("EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
            folders = {folder for folder in folders if "/" not in folder.removeprefix(prefix)}
        return self._json(
            [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)] + entries
        )

    def _entry(self, path: str, files: dict[str, bytes]) -> dict[str, object]:
        """A file as trees and `paths-info` list it; its id is git's."""
        content = files[path]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
        if path.endswith(self.server.lfs or ("no suffix",)):
            pointer = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entry["lfs"] = pointer
        return entry
