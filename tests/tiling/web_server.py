"""The server of `tests.tiling.web`, in a process of its own: `python web_server.py FOLDER` prints its port."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

_CONTROL = "/control"


class _Handler(SimpleHTTPRequestHandler):
    """Serves parts of files with an ETag, as object stores do."""

    protocol_version = "HTTP/1.1"
    lock, rules, asked = Lock(), list[dict[str, Any]](), list[tuple[str, str, str]]()

    def do_GET(self) -> None:
        if self.path == _CONTROL:
            self.send_content(json.dumps(self.asked).encode(), 200)
            return
        rule = self.rule()
        match rule.get("fault"):
            case "status":
                self.refuse(rule["value"])
            case "hang up":
                self.close_connection = True
            case fault:
                if fault == "stall":
                    time.sleep(rule["value"])
                try:
                    content = Path(self.translate_path(self.path)).read_bytes()
                except OSError:
                    self.refuse(404)
                else:
                    self.send_part(content, fault)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        with self.lock:
            self.rules.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_content(b"", 200)

    def do_DELETE(self) -> None:
        with self.lock:
            self.rules.clear()
        self.send_content(b"", 200)

    def rule(self) -> dict[str, Any]:
        """What this request is to meet; counts it."""
        asked = self.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").split("-")[0] or 0)
        with self.lock:
            self.asked.append((self.command, self.path, asked))
            for rule in self.rules:
                if rule["times"] and self.path.endswith(rule["path"]) and first >= rule["beyond"]:
                    rule["times"] -= 1
                    return rule
        return {}

    def send_part(self, content: bytes, fault: str | None) -> None:
        size, tag = len(content), sha256(content).hexdigest()
        asked = "" if fault == "rangeless" else self.headers.get("Range", "")
        headers = {"ETag": f'"{tag}"', "Accept-Ranges": "none" if fault == "rangeless" else "bytes"}
        if asked:
            low, high = asked.removeprefix("bytes=").split("-")
            first, last = int(low), min(int(high or size), size - 1)
            if fault == "misplaced":
                first, last = first - 1000, last - 1000
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            content = content[first : last + 1]
        self.send_content(content, 206 if asked else 200, headers, 0.5 if fault == "drop" else 1)

    def send_content(
        self, content: bytes, status: int, headers: dict[str, str] | None = None, share: float = 1
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: int(len(content) * share)])
        if share < 1:
            self.close_connection = True

    def refuse(self, status: int) -> None:
        self.send_content(b"", status, {"Retry-After": "1"})

    def log_message(self, *arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        pass  # clients that give up in the middle are what this is for


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), partial(_Handler, directory=sys.argv[1]))
    print(server.server_port, flush=True)
    server.serve_forever()
