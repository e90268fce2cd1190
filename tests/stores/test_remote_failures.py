"""Storage that fails: one line says what, where and how to mend it, and nothing is lost."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.stores import StoreError, open_store
from onceclip.stores.storage import RemoteStore

COMMAND = "from onceclip.cli import main; import sys; main(sys.argv[1:], prog_name='onceclip')"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes calls and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("where", "said"), [
    ("s3://no-such-bucket/x.zarr", "the bucket does not exist .*: create it, or correct its name"),
    ("s3://bucket/no-such.zarr", "is not a store .* make one with `onceclip extract FOLDER s3://bucket/no-such.zarr"),
    ("s3://bucket", "s3://bucket is not a store"),
    ("memory://no-such.zarr", "memory://no-such.zarr is not a store"),
    ("file:///no-such.zarr", "file:///no-such.zarr is not a store"),
    ("nonsense://x.zarr", "nothing is known of nonsense:// URLs: give a path, s3://BUCKET/NAME"),
    pytest.param("gs://bucket/x.zarr", "package for gs:// is not installed: .*gcsfs",
                 marks=pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")),
])
def test_a_place_without_a_store_is_one_line(s3: Any, run: Callable[..., Any], where: str, said: str) -> None:
    for command in ("info", "verify"):
        result = run(command, where)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        with pytest.raises(StoreError, match=said):
            open_store(where)
        assert where in result.stderr


@pytest.mark.parametrize("command", ["extract", "import"])
def test_a_missing_bucket_is_told_before_anything_is_done(s3: Any, image_folder: Path, place: Path, command: str,
                                                          run: Callable[..., Any]) -> None:
    options = ("--model", "demo") if command == "extract" else ()
    source = image_folder
    if command == "import":
        source = place / "good.npz"
        np.savez(source, embedding=np.eye(4, dtype=np.float32), label=[0, 0, 1, 1], split=["train", "test"] * 2)
    result = run(command, source, "s3://no-such-bucket/x.zarr", *options)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "s3://no-such-bucket/x.zarr: the bucket does not exist" in result.stderr


@pytest.mark.parametrize(("setting", "code", "said"), [
    ({"AWS_ACCESS_KEY_ID": None}, "", "access was refused .*: set the credentials of the storage"),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "", "cannot be used .*127.0.0.1:9.*network"),
    ({"AWS_ENDPOINT_URL": "nonsense"}, "", "cannot be used .Invalid endpoint: nonsense.: check the network"),
    ({"AWS_ENDPOINT_URL": "SILENT"}, "from onceclip.stores import storage as remote; remote.FIRST_ANSWER = 1.0;",
     r"cannot be used \(no answer within 1 s\)"),
    ({}, "import sys; sys.modules['s3fs'] = None;", r"for s3:// is not installed: pip install 'onceclip\[s3\]'"),
], ids=["no credentials", "nobody there", "no address", "no answer", "no s3fs"])
def test_a_client_that_cannot_work_is_one_line(
        s3: Any, forked: Callable[..., Any], silent: str, monkeypatch: pytest.MonkeyPatch,
        setting: dict[str, str | None], code: str, said: str) -> None:
    for name, value in setting.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value.replace("SILENT", silent))
    done = forked("-c", code + COMMAND, "info", "s3://bucket/x.zarr")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("Error: s3://bucket/x.zarr: ")
    assert re.search(said, done.stderr)


def test_s3fs_is_imported_for_s3_alone(process: Callable[..., Any], store_path: Path) -> None:
    code = ("import sys; from onceclip import open_store; from onceclip.stores.storage import occupied\n"
            "open_store(sys.argv[1]).embeddings(); open_store('file://' + sys.argv[1]).embeddings()\n"
            "assert not occupied('memory://x.zarr'); print('s3fs' in sys.modules)")
    done = process("-c", code, store_path)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_rights_that_end_while_writing_are_one_line_and_cost_no_row(
        s3: Any, s3_url: str, image_folder: Path, run: Callable[..., Any], extract_demo: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary credentials run out in long extractions."""
    import s3fs

    write, left = s3fs.S3FileSystem._pipe_file, [30]

    async def ending(self: Any, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise PermissionError("The provided token has expired.")
        return await write(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_pipe_file", ending)
        result = run("extract", image_folder, s3_url, "--model", "demo", "--unit-rows", 16)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert f"{s3_url}: access was refused (The provided token has expired.)" in result.stderr
    assert not open_store(s3_url).complete
    extract_demo(image_folder, s3_url)
    assert len(open_store(s3_url).embeddings()) == 60


def test_a_connection_that_breaks_while_reading_is_not_called_damage(s3_store: str,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    async def broken(*arguments: Any, **options: Any) -> Any:
        raise ConnectionResetError("Connection reset by peer")

    store = open_store(s3_store)
    assert isinstance(store.group.store, RemoteStore)
    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", broken)
    with pytest.raises(StoreError, match=r"cannot be used \(Connection reset by peer\): check the network") as caught:
        store.embeddings()
    assert type(caught.value) is StoreError
