"""A stand-in for the hub's HTTP interface on the loopback, as much of it as a push and a download
use: repositories with files, and files of any size by its large-file protocol."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


class Hub:
    """repositories: by name, each a dictionary of file contents. requests: what was asked."""

    def __init__(self):
        self.repositories, self.uploads, self.requests = {}, {}, []

    def files(self, name):
        return self.repositories[name]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        length = headers.pop("length", len(data))
        all_headers = {"Content-Type": kind, "Content-Length": str(length), **headers}
        for name, value in all_headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def address(self):
        return f"http://{self.headers['Host']}"

    def allowed(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer(401, {"error": "Invalid username or password."})
        return False

    def do_GET(self):
        self.hub.requests.append((self.command, self.path))
        path = self.path.split("?")[0].strip("/")
        if "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            file = rest.split("/", 1)[1]
            content = self.hub.repositories.get(name, {}).get(file)
            if content is None:
                kind = "EntryNotFound" if name in self.hub.repositories else "RepoNotFound"
                self.answer(404, {"error": "not found"}, X_Error_Code=kind)
                return
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, content, ETag=etag, X_Repo_Commit="0" * 40)
            return
        name = path.removeprefix("api/models/")
        if name in self.hub.repositories:
            files = [{"rfilename": file} for file in self.hub.files(name)]
            self.answer(200, {"id": name, "sha": "0" * 40, "siblings": files})
        else:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        self.hub.requests.append((self.command, self.path))
        given = self.body()
        if not self.allowed():
            return
        path = self.path.split("?")[0].strip("/")
        if path == "api/repos/create":
            asked = json.loads(given)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            self.answer(200, {"url": f"{self.address}/{name}", "name": name})
        elif path == "api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(given)["files"]
            ]
            self.answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **wanted,
                    "actions": {"upload": {"href": f"{self.address}/upload/{wanted['oid']}"}},
                }
                for wanted in json.loads(given)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.commit(path.removeprefix("api/models/").split("/commit/")[0], given)
        else:
            self.answer(404, {"error": f"{path} is unknown here"})

    def commit(self, name, given):
        files = self.hub.files(name)
        for line in given.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        url = f"{self.address}/{name}/commit/{'0' * 40}"
        self.answer(200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None})

    def do_PUT(self):
        self.hub.requests.append((self.command, self.path))
        content = self.body()
        self.hub.uploads[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)


@contextmanager
def serving():
    """A hub and its address, for a while."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
