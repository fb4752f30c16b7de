"""A model hub on this machine: a real HTTP server that answers huggingface_hub's requests as huggingface.co does.

It has what `dalle pull` and `dalle push` need: a repository's commit and list of files, its files (large ones by a
redirect to another path, with Range), creation, and commits with uploads by git LFS. Requests are recorded, and faults
can be ordered: a connection that is cut, content that is damaged, an answer of any status.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Hub", "Repo", "running_hub"]

TOKEN = "hf_of_the_test"
LARGE = 512
"""Bytes from which a file is stored by git LFS, as are all weights."""
LARGE_SUFFIXES = (".safetensors", ".msgpack", ".bin", ".pt", ".ckpt", ".pkl")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str, content: bytes) -> bool:
    return path.endswith(LARGE_SUFFIXES) and len(content) >= LARGE


@dataclass
class Repo:
    """A repository: the files of each commit, and the commits of its branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "", branch: str = "main") -> str:
        """Add a commit with these files alone."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[name] = files
        self.refs[branch] = name
        self.messages.append(message)
        return name

    def commit_folder(self, folder: Path) -> str:
        """Add a commit with the files of a folder."""
        return self.commit({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the main branch."""
        return self.commits[self.refs["main"]]

    def resolve(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Hub:
    """The hub: its repositories, the requests so far, and the faults to come."""

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers of each request; names of headers are in lower case."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the connection is cut in each of the next downloads of large files."""
    damaged: bool = False
    """Whether large files arrive with another byte in the middle."""
    claimed_size: int | None = None
    """The size that the list of files claims for large ones."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Statuses of answers, by a part of the path."""
    on_download: Callable[[], None] = lambda: None
    """Called before a file is sent."""

    @property
    def cdn(self) -> str:
        """Where large files are: for a client, another host."""
        return self.url.replace("127.0.0.1", "localhost")

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo())

    def paths(self, method: str = "GET") -> list[str]:
        return [path for found, path, _ in self.requests if found == method]

    @property
    def ranges(self) -> list[str]:
        """The parts of large files that were asked for."""
        return [headers["range"] for _, path, headers in self.requests if "range" in headers and "/cdn/" in path]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer("GET")

        def do_POST(self) -> None:
            self.answer("POST")

        def do_PUT(self) -> None:
            self.answer("PUT")

        def answer(self, method: str) -> None:
            path = urlsplit(self.path).path
            body = self.body()
            hub.requests.append((method, path, {name.lower(): value for name, value in self.headers.items()}))
            for part, status in hub.statuses.items():
                if part in path:
                    return self.send(status, b"{}")
            for wanted, pattern, act in ROUTES:
                if wanted == method and (found := re.fullmatch(pattern, path)):
                    return act(self, body, *map(unquote, found.groups()))
            return self.fail(404, "EntryNotFound", f"no such path: {path}")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def send(self, status: int, content: bytes | Any, headers: dict[str, str] | None = None) -> None:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def fail(self, status: int, code: str, message: str) -> None:
            self.send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

        @property
        def known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def open(self, name: str) -> Repo | None:
            """The repository, or None after an answer that it does not exist, or not for this caller."""
            if (sent := self.headers.get("Authorization")) and sent != f"Bearer {TOKEN}":
                message = "Invalid credentials in Authorization header"
                self.send(401, {"error": message}, {"X-Error-Message": message})
                return None
            repo = hub.repos.get(name)
            if repo is None or (repo.private and not self.known):
                self.fail(404 if self.known else 401, "RepoNotFound", "Repository not found")
                return None
            return repo

        def info(self, _: bytes, name: str, revision: str = "main") -> None:
            if (repo := self.open(name)) is None:
                return None
            if (commit := repo.resolve(revision)) is None:
                return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            siblings = [entry_of(path, content, hub.claimed_size) for path, content in repo.commits[commit].items()]
            return self.send(200, {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

        def file(self, _: bytes, name: str, revision: str, path: str) -> None:
            hub.on_download()
            if (repo := self.open(name)) is None:
                return None
            if repo.gated and not self.known:
                return self.fail(401, "GatedRepo", f"Access to model {name} is restricted")
            if (commit := repo.resolve(revision)) is None:
                return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if (content := repo.commits[commit].get(path)) is None:
                return self.fail(404, "EntryNotFound", "Entry not found")
            headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(content)}"'}
            if not is_large(path, content):
                return self.send(200, content, headers)
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"'}
            hub.uploads[sha256(content)] = content
            return self.send(302, b"", headers | linked | {"Location": f"{hub.cdn}/cdn/{sha256(content)}"})

        def large_file(self, _: bytes, digest: str) -> None:
            content = hub.uploads[digest]
            if hub.damaged:
                content = content[:300] + bytes([content[300] ^ 1]) + content[301:]
            start, status, headers = 0, 200, {"Accept-Ranges": "bytes", "ETag": f'"{digest}"'}
            if wanted := self.headers.get("Range"):
                start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if not hub.cuts:
                return self.send(status, content[start:], headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + hub.cuts.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None

        def create(self, body: bytes) -> None:
            if not self.known:
                return self.send(401, {"error": "Unauthorized"})
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in hub.repos:
                return self.send(409, {"error": "You already created this model repo"})
            repo = hub.repo(name)
            repo.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
            return self.send(200, {"url": f"{hub.url}/{name}"})

        def validate(self, body: bytes) -> None:
            content = json.loads(body)["content"]
            found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
            if not found:
                return self.send(400, {"errors": [{"message": "the card has no header"}], "warnings": []})
            return self.send(200, {"errors": [], "warnings": []})

        def preupload(self, body: bytes, name: str, _: str) -> None:
            if (repo := self.open(name)) is None:
                return None
            files = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular"
                there = repo.files.get(file["path"])
                oid = None if there is None else (sha256(there) if mode == "lfs" else git_sha1(there))
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self.send(200, {"files": files})

        def batch(self, body: bytes, name: str) -> None:
            if self.open(name) is None:
                return None
            objects = []
            for item in json.loads(body)["objects"]:
                oid = item["oid"]
                actions = {
                    "upload": {"href": f"{hub.url}/lfs/{oid}", "header": {}},
                    "verify": {"href": f"{hub.url}/lfs-verify", "header": {}},
                }
                objects.append(
                    {"oid": oid, "size": item["size"]} | ({} if oid in hub.uploads else {"actions": actions})
                )
            return self.send(200, {"transfer": "basic", "objects": objects})

        def upload(self, body: bytes, digest: str) -> None:
            if sha256(body) != digest:
                return self.send(400, {"error": "wrong digest"})
            hub.uploads[digest] = body
            return self.send(200, b"")

        def verify(self, body: bytes) -> None:
            wanted = json.loads(body)
            found = hub.uploads.get(wanted["oid"])
            return self.send(200 if found is not None and len(found) == wanted["size"] else 404, {})

        def commit(self, body: bytes, name: str, revision: str) -> None:
            if (repo := self.open(name)) is None:
                return None
            if not self.known:
                return self.send(403, {"error": "Forbidden"})
            files, message = dict(repo.files), ""
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                match item["key"]:
                    case "header":
                        message = value["summary"]
                        if value.get("parentCommit") not in (None, repo.refs[revision]):
                            return self.send(412, {"error": "A commit has happened since. Please refresh."})
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = hub.uploads[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
            oid = repo.commit(files, message, revision)
            return self.send(200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid})

    name = "([^/]+/[^/]+)"
    ROUTES: list[tuple[str, str, Callable[..., None]]] = [  # noqa: N806
        ("GET", f"/api/models/{name}", Handler.info),
        ("GET", f"/api/models/{name}/revision/([^/]+)", Handler.info),
        ("GET", f"/{name}/resolve/([^/]+)/(.+)", Handler.file),
        ("GET", "/cdn/([0-9a-f]{64})", Handler.large_file),
        ("POST", "/api/repos/create", Handler.create),
        ("POST", "/api/validate-yaml", Handler.validate),
        ("POST", f"/api/models/{name}/preupload/([^/]+)", Handler.preupload),
        ("POST", f"/{name}[.]git/info/lfs/objects/batch", Handler.batch),
        ("PUT", "/lfs/([0-9a-f]{64})", Handler.upload),
        ("POST", "/lfs-verify", Handler.verify),
        ("POST", f"/api/models/{name}/commit/([^/]+)", Handler.commit),
    ]
    return Handler


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry_of(path: str, content: bytes, claimed_size: int | None) -> dict[str, Any]:
    """A file in the list of a repository's files, as `?blobs=true` gives it."""
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
    if is_large(path, content):
        size = claimed_size or len(content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {size}\n".encode()
        entry |= {"size": size, "blobId": git_sha1(pointer)}
        entry["lfs"] = {"sha256": sha256(content), "size": size, "pointerSize": len(pointer)}
    return entry


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that runs within a `with` block."""
    hub = Hub(url="")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
