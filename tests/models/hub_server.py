"""The few endpoints of the hub that a model needs, served from a folder and counted."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = sha1(b"the only commit").hexdigest()


@dataclass
class FakeHub:
    """One repository, `org/tiny`, and what was asked of it."""

    folder: Path
    address: str = ""
    ignores_ranges: bool = False
    num_breaks: int = 0
    """How many answers with weights to break off halfway."""
    weight_bytes: int = 0
    weight_requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path in (f"/api/models/org/tiny/revision/{revision}" for revision in ("main", COMMIT)):
                return self.answer_json({"id": "org/tiny", "sha": COMMIT, "siblings": []})
            if path in (f"/api/models/org/tiny/tree/{revision}" for revision in ("main", COMMIT)):
                return self.answer_json(
                    [
                        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                        for file in hub.folder.iterdir()
                    ]
                )
            repo, _, name = path.partition(f"/resolve/{COMMIT}/")
            if repo == "/org/tiny" and (hub.folder / name).is_file():
                return self.answer_file((hub.folder / name).read_bytes(), name)
            error = "RevisionNotFound" if path.startswith("/api/models/org/tiny/revision/") else "RepoNotFound"
            self.answer(b"", status=404, headers={"X-Error-Code": error})

        def answer_json(self, value: object) -> None:
            self.answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

        def answer_file(self, body: bytes, name: str) -> None:
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range")
            status = 200
            if wanted and not hub.ignores_ranges:
                start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
                headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                body, status = body[start : end + 1], 206
            self.answer(body, status=status, headers=headers, is_weights=name.endswith(".safetensors"))

        def answer(self, body: bytes, *, status: int = 200, headers: dict[str, str], is_weights: bool = False) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            with hub.lock:
                is_broken = is_weights and len(body) > 1000 and hub.num_breaks > 0
                hub.num_breaks -= is_broken
                if is_weights:
                    hub.weight_bytes += len(body) // 2 if is_broken else len(body)
                    hub.weight_requests.append(f"{self.path} {self.headers.get('Range')}")
            if is_broken:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that hang up in the middle are part of the tests
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
