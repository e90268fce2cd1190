"""A hub on this machine: the part of Hugging Face's HTTP interface that reading and committing files needs.

Run as `python hub_server.py FOLDER`; it prints its port, keeps repositories under FOLDER/models and FOLDER/datasets,
and ends with its standard input. What FOLDER/refused names ("lfs", "commit") is answered with an error of the server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(sys.argv[1])
LARGE = 512  # bytes from which a file goes to the storage of large files


def entry(path: Path, repository: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    oid = hashlib.sha1(path.read_bytes() if path.is_file() else name.encode()).hexdigest()
    return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name} if path.is_file() else \
        {"type": "directory", "oid": oid, "size": 0, "path": name}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, code: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=what)

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            repository = ROOT.joinpath(*parts[1:4])
            if not repository.is_dir():
                return self.missing("RepoNotFound")
            if parts[4:5] == ["tree"]:
                folder = repository.joinpath(*parts[6:])
                if not folder.is_dir():
                    return self.missing("EntryNotFound")
                found = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
                return self.answer(200, [entry(path, repository) for path in sorted(found)])
            return self.answer(200, {"id": "/".join(parts[2:4]), "sha": "0" * 40, "private": False, "siblings": [
                {"rfilename": path.relative_to(repository).as_posix()} for path in repository.rglob("*")]})
        kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        path = ROOT.joinpath(kind, *parts[:2], *parts[4:])
        if not path.is_file():
            return self.missing("EntryNotFound")
        content, code = path.read_bytes(), 200
        total, span = len(content), self.headers.get("Range")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        if span:
            start, _, end = span.removeprefix("bytes=").partition("-")
            stop = min(int(end) + 1 if end else total, total)
            content, code = content[int(start):stop], 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        return self.answer(code, content, **headers)

    do_HEAD = do_GET  # noqa: N815

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = b""
        while size := int(self.rfile.readline(), 16):
            pieces += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return pieces

    def refused(self, what: str) -> bool:
        file = ROOT / "refused"
        if not file.is_file() or what not in file.read_text():
            return False
        self.answer(403, {"error": f"{what} refused"})
        return True

    def do_PUT(self) -> None:
        (ROOT / "lfs").mkdir(exist_ok=True)
        (ROOT / "lfs" / self.path.rpartition("/")[2]).write_bytes(self.body())
        self.answer(200)

    def do_POST(self) -> None:
        content = self.body()
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[1] == "validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if parts[1:3] == ["repos", "create"]:
            said = json.loads(content)
            name = f"{said['organization']}/{said['name']}"
            place = ROOT / f"{said.get('type') or 'model'}s" / name
            if place.exists():
                return self.answer(409, {"error": "exists", "url": f"/{name}"})
            place.mkdir(parents=True)
            (place / ".gitattributes").write_text("*.zarr filter=lfs\n")
            prefix = "" if "models" in place.parts else "datasets/"
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{prefix}{name}", "id": name})
        if parts[-1] == "batch":
            if self.refused("lfs"):
                return None
            return self.answer(200, {"transfer": "basic", "objects": [
                {**each, "actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{each['oid']}"}}}
                for each in json.loads(content)["objects"]]})
        repository, action = ROOT.joinpath(*parts[1:4]), parts[4]
        if not repository.is_dir():
            return self.missing("RepoNotFound")
        if action == "paths-info":
            said = json.loads(content) if content[:1] == b"{" else {"paths": [
                unquote(each.partition("=")[2]) for each in content.decode().split("&") if each.startswith("paths")]}
            return self.answer(200, [entry(repository / name, repository) for name in said["paths"]
                                     if (repository / name).exists()])
        if action == "preupload":
            return self.answer(200, {"files": [
                {"path": each["path"], "uploadMode": "lfs" if each["size"] > LARGE else "regular",
                 "shouldIgnore": False} for each in json.loads(content)["files"]]})
        if self.refused("commit"):
            return None
        for line in content.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] in ("file", "lfsFile"):
                path = repository / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(value["content"]) if said["key"] == "file" else
                                 (ROOT / "lfs" / value["oid"]).read_bytes())
        with open(ROOT / "commits", "a") as file:
            file.write("/".join(parts[1:4]) + "\n")
        prefix = "datasets/" if parts[1] == "datasets" else ""
        return self.answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl":
                                 f"http://{self.headers['Host']}/{prefix}{'/'.join(parts[2:4])}/commit/{'1' * 40}"})


with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
