"""A Prefect server in a process of its own, and what people type at it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]

# Nothing here is about speed: a wait ends when what it waits for happened, and fails only when it never did.
PATIENCE = 240.0


def wait_for(what: str, happened: Callable[[], Any]) -> Any:
    """The first true value that `happened` returns."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not happen in {PATIENCE:.0f} s")


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """Signal a process, with SIGKILL all that it started too, and wait until they are gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family if how == signal.SIGKILL else family[:1]:
        member.send_signal(how)
    process.wait(PATIENCE)
    psutil.wait_procs(family[1:], timeout=PATIENCE)


class Server:
    """A server on loopback, with all its services and a home of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        self.home = home
        self.environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.api}
        self.process = self.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for("a healthy server", self.healthy)

    def healthy(self) -> bool:
        """Whether it answers; AssertionError with its log where it has ended."""
        assert self.process.poll() is None, (self.home / "server.log").read_text()
        try:
            return httpx.get(f"{self.api}/health").is_success
        except httpx.TransportError:
            return False

    def start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A `prefect` command that stays, away from the repository: a worker must not need to be there."""
        with (self.home / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env=self.environment,
                cwd=self.home,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def worker(self) -> subprocess.Popen[bytes]:
        """A worker of the local pool."""
        return self.start("worker", "worker", "start", "--pool", "lmseg-local")

    def run(self, *command: str | Path) -> str:
        """What a Python command prints, run from the root; AssertionError with all output where it fails."""
        done = subprocess.run(
            [sys.executable, *command], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        log = self.home / "worker.log"
        assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
        return done.stdout

    def prefect(self, *arguments: str) -> str:
        """`run` of a `prefect` command that asks nothing."""
        return self.run("-m", "prefect", "--no-prompt", *arguments)

    def post(self, path: str, **body: Any) -> Any:
        """The JSON answer to a JSON question."""
        return httpx.post(f"{self.api}{path}", json=body, timeout=60).raise_for_status().json()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return httpx.get(f"{self.api}{path}", timeout=60).raise_for_status().json()
