"""A Hub of this machine: the part of its HTTP interface that huggingface_hub needs to look up and download a model."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Commits are folders; `branches` names some. A gated one wants the token "secret"."""

    commits: dict[str, Path]
    branches: dict[str, str]
    gated: bool = False


@dataclass
class Hub:
    """The repositories, and what was asked for so far: (method, path, token)."""

    repositories: dict[str, Repository]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def downloaded(self, repo: str) -> set[str]:
        """The files of a repository whose content was fetched."""
        mark = f"/{repo}/resolve/"
        return {path.split("/")[-1] for method, path, _ in self.requests if method == "GET" and path.startswith(mark)}

    def tokens(self, repo: str) -> set[str | None]:
        """The tokens that came with the requests for a repository."""
        return {token for _, path, token in self.requests if f"/{repo}/" in path}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port, until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append((self.command, path, token))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, action, revision, *rest = [*(parts[2:] if api else parts), *[""] * 4]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if action == "move":  # a push to the main branch
            repository.branches["main"] = list(repository.commits)[-1]
            return self._answer(b"{}")
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        if api:
            return self._answer(json.dumps(self._about(f"{owner}/{name}", repository, commit, action)).encode())
        file = repository.commits[commit] / rest[0]
        if repository.gated and token != "secret":
            return self._refuse(403, "GatedRepo")
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        self._answer(file.read_bytes(), commit)

    def _about(self, repo: str, repository: Repository, commit: str, action: str) -> object:
        files = sorted(repository.commits[commit].iterdir())
        if action == "tree":
            return [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _digest(f)} for f in files]
        return {"id": repo, "modelId": repo, "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}

    def _answer(self, body: bytes, commit: str | None = None, status: int = 200, code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if commit:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(b'{"error": "no"}', status=status, code=code)

    def log_message(self, *args: object) -> None:
        """Quiet."""


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
