"""A web server of files that can be told to misbehave.

In a process of its own: some of rasterio's calls hold Python's lock while they wait for the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

HEADER = 16384  # bytes that GDAL asks for first
# A client that gives up after seconds, with nothing between it and loopback.
IMPATIENT = {
    "no_proxy": "127.0.0.1",
    "NO_PROXY": "127.0.0.1",
    "GDAL_HTTP_MAX_RETRY": "1",
    "GDAL_HTTP_RETRY_DELAY": "0.02",
    "GDAL_HTTP_LOW_SPEED_TIME": "1",
}


@dataclass(frozen=True)
class Web:
    """A folder under an address, and what requests to it meet."""

    folder: Path
    host: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"{self.host}/{self.folder.name}"

    def meet(self, fault: str, value: Any = None, *, times: int = 1, path: str = "", beyond: int = HEADER) -> None:
        """Has requests go wrong.

        Args:
            fault: `status` (value: its code), `stall` (value: seconds), `drop` in the middle of the answer, `hang up`
                without one, `rangeless` (200 and all of the file), `misplaced` (other bytes than asked for).
            times: how many requests meet it; -1 for all.
            path: only requests whose path ends so.
            beyond: only requests for bytes from this one on; by default those that GDAL does not ask for on opening.
        """
        rule = {"fault": fault, "value": value, "times": times, "path": path, "beyond": beyond}
        self._control("POST", rule)

    def heal(self) -> None:
        """Has all requests be answered as they should be."""
        self._control("DELETE")

    def asked(self) -> list[tuple[str, str, str]]:
        """Method, path and range of every request for the folder so far."""
        return [tuple(line) for line in json.loads(self._control("GET")) if line[1].startswith(f"/{self.folder.name}/")]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _control(self, method: str, rule: dict[str, Any] | None = None) -> bytes:
        body = None if rule is None else json.dumps(rule).encode()
        with urlopen(Request(f"{self.host}/control", body, method=method)) as answer:
            return bytes(answer.read())


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Serves what lies beside a folder on loopback, and the folder first."""
    command = [sys.executable, Path(__file__).with_name("web_server.py"), folder.parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    web = Web(folder, f"http://127.0.0.1:{process.stdout.readline().strip()}", process)
    try:
        yield web
    finally:
        web.stop()
