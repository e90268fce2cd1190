"""A server on this machine that speaks S3."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

SERVE = ("import sys; from moto.server import ThreadedMotoServer\n"
         "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start()\n"
         "print(server.get_host_and_port()[1], flush=True); sys.stdin.read(); server.stop()")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address, which s3:// means from here on, with credentials for it."""
    settings = tmp_path_factory.mktemp("aws") / "settings"
    settings.touch()
    with subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as server, pytest.MonkeyPatch.context() as patch:
        assert server.stdin is not None
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        for name, value in {
                "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": str(settings), "AWS_SHARED_CREDENTIALS_FILE": str(settings),
                "NO_PROXY": "127.0.0.1"}.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        yield address
        server.stdin.close()


@pytest.fixture(scope="session")
def s3(s3_server: str) -> Any:
    """A client of the server, with a bucket called `bucket`; it remembers nothing of what it saw."""
    import s3fs

    client = s3fs.S3FileSystem(use_listings_cache=False)
    client.mkdir("bucket")
    return client


@pytest.fixture(params=["s3", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be, on every kind of storage."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    place = {"s3": "s3://bucket", "memory": "memory://", "file": f"file://{tmp_path}"}[request.param]
    return f"{place}/{uuid4().hex}.zarr"


@pytest.fixture
def s3_url(s3: Any) -> str:
    """Where a new store may be on S3."""
    return f"s3://bucket/{uuid4().hex}.zarr"


@pytest.fixture
def s3_store(s3: Any, s3_url: str, store_path: Path) -> str:
    """A copy of the shared store on S3, to be damaged."""
    s3.put(str(store_path), s3_url, recursive=True)
    return s3_url
