"""A server that speaks the hub's protocol as far as its client needs, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """One repository, ``owner/gans``, whose branch main and tag v1 are at ``COMMIT``.

    Attributes:
        files: content by path.
        listed: paths that the tree says beside those of ``files``.
        requests: what was asked: method and path.
        ranges: the parts of files that were asked for.
        breaks: connections that end in the middle of a file, from now on.
        refusal: a status for everything, with the hub's word for it.
        damage: whether files arrive with another last byte.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.listed: list[str] = []
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.breaks = 0
        self.refusal: tuple[int, str] | None = None
        self.damage = False
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self) -> list[str]:
        """What was asked since the last call."""
        found = list(self.requests)
        self.requests.clear()
        return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, with_content: bool) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.server.requests.append(f"{self.command} {path}")
        if self.server.refusal:
            return self._error(*self.server.refusal)
        api, _, rest = path.removeprefix("/api/models/").partition("owner/gans")
        if path.startswith("/api/") and api == "" and rest.startswith("/revision/"):
            return self._revision(rest.removeprefix("/revision/"))
        if path.startswith("/api/") and api == "" and rest.startswith("/tree/"):
            return self._tree(*rest.removeprefix("/tree/").partition("/")[::2])
        if path.startswith("/owner/gans/resolve/"):
            return self._file(*path.removeprefix("/owner/gans/resolve/").partition("/")[::2], with_content)
        self._error(404, "RepoNotFound")

    def _revision(self, revision: str) -> None:
        if revision not in ("main", "v1", COMMIT):
            return self._error(404, "RevisionNotFound")
        self._json({"id": "owner/gans", "sha": COMMIT})

    def _tree(self, revision: str, folder: str) -> None:
        assert revision == COMMIT
        prefix = f"{folder}/" if folder else ""
        rows = {}
        for path in (*self.server.files, *self.server.listed):
            if not path.startswith(prefix):
                continue
            name, is_deeper, _ = path.removeprefix(prefix).partition("/")
            is_file = not is_deeper or path in self.server.listed
            size = len(self.server.files.get(path, b""))
            row = (
                {"type": "file", "path": path, "size": size}
                if is_file
                else {"type": "directory", "path": prefix + name}
            )
            rows[row["path"]] = {"oid": "0" * 40, **row}
        if not rows:
            return self._error(404, "EntryNotFound")
        self._json(list(rows.values()))

    def _file(self, revision: str, path: str, with_content: bool) -> None:
        assert revision == COMMIT
        if path not in self.server.files:
            return self._error(404, "EntryNotFound")
        content = self.server.files[path]
        digest = hashlib.sha256(content).hexdigest()
        if self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])

        # Half of it may have been sent before.
        wanted = self.headers.get("Range") if with_content else None
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if wanted:
            self.server.ranges.append(wanted)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        for name, value in {
            "ETag": f'"{digest}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-ETag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(content) - first),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_content:
            return

        # Send it, or a half.
        if self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(content[first : first + (len(content) - first) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[first:])

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _error(self, status: int, word: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", word)
        self.send_header("X-Error-Message", word)
        self.send_header("Content-Length", "0")
        self.end_headers()
