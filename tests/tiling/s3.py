"""An S3 server on loopback, in a process of its own: `python -m tests.tiling.s3` prints its port."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

BUCKET = "scenes"
KEYS = {"AWS_ACCESS_KEY_ID": "of-nobody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def environment(host: str) -> dict[str, str]:
    """What clients need to find a server, and nothing of the person's who runs the tests."""
    return {
        "AWS_S3_ENDPOINT": host,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "CPL_AWS_EC2_API_ROOT_URL": "http://127.0.0.1:1",
        **KEYS,
    }


def take(environment: dict[str, str]) -> None:
    """Has this process, a worker's, find the server too."""
    os.environ.update(environment)


@dataclass(frozen=True)
class ObjectStore:
    """A bucket behind `s3://scenes/`."""

    host: str
    process: subprocess.Popen[str]

    def put(self, key: str, file: Path) -> None:
        """Uploads a file, for everybody to read."""
        self._client().upload_file(str(file), BUCKET, key, ExtraArgs={"ACL": "public-read"})

    def write(self, key: str, content: bytes) -> None:
        self._client().put_object(Bucket=BUCKET, Key=key, Body=content)

    def read(self, key: str) -> bytes:
        return bytes(self._client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def keys(self, prefix: str) -> dict[str, str]:
        """The keys under a prefix, without it, and their ETags."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        found = (item for page in pages for item in page.get("Contents", []))
        return {item["Key"].removeprefix(f"{prefix}/"): item["ETag"] for item in found}

    def fetch(self, prefix: str, folder: Path) -> Path:
        """Downloads what lies under a prefix."""
        for key in self.keys(prefix):
            file = folder / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.read(f"{prefix}/{key}"))
        return folder

    def delete(self, key: str) -> None:
        self._client().delete_object(Bucket=BUCKET, Key=key)

    def trust(self, anybody: bool) -> None:
        """Whether keys are looked at; those of `KEYS` are nobody's."""
        address = f"http://{self.host}/moto-api/reset-auth"
        urlopen(Request(address, b"inf" if anybody else b"0", {"Content-Type": "text/plain"})).close()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _client(self) -> Any:
        return _client(f"http://{self.host}")


@contextmanager
def storing() -> Iterator[ObjectStore]:
    """An object store with an empty bucket."""
    command = [sys.executable, "-m", "tests.tiling.s3"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root)
    assert process.stdout is not None
    store = ObjectStore(f"127.0.0.1:{process.stdout.readline().strip()}", process)
    try:
        yield store
    finally:
        store.stop()


def _client(address: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )


if __name__ == "__main__":
    from moto.server import DomainDispatcherApplication, ThreadedMotoServer

    # S3 looks and puts in one step, moto in two.
    step, answer = threading.Lock(), DomainDispatcherApplication.__call__

    def one_at_a_time(self: Any, environ: Any, start: Any) -> Any:
        with step:
            return answer(self, environ, start)

    DomainDispatcherApplication.__call__ = one_at_a_time
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    _client(f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
    print(port, flush=True)
    threading.Event().wait()
