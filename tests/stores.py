"""An S3 API on loopback, and what to put there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def served() -> Iterator[dict[str, str]]:
    """The environment in which a process finds the store."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    server.stop()


def connected(environment: dict[str, str]) -> Any:
    from pyarrow import fs

    return fs.S3FileSystem(endpoint_override=environment["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True)


def upload(store: Any, folder: Path, bucket: str) -> None:
    store.create_dir(bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with store.open_output_stream(f"{bucket}/{path.relative_to(folder)}", compression=None) as out:
                out.write(path.read_bytes())
