"""`convert push`, by huggingface_hub itself, to a stand-in of the Hub on this machine."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from convert import hub
from stellarbyte.door import main
from stellarbyte.errors import UserError

TOKEN = "hf_standin"


class StandIn(BaseHTTPRequestHandler):
    """The calls of the Hub that an upload of small files makes. It keeps what it gets."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if "forbidden" in self.path or b'"forbidden"' in content:
            return self._answer(403, {"error": "You don't have the rights to create a model"})
        if self.path == "/api/repos/create":
            self.server.repos.append(json.loads(content))
            return self._answer(200, {"url": f"{self.server.url}/someone/model"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(content)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            return self._answer(200, {"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                else:
                    self.server.commits.append(line["value"]["summary"])
            url = f"{self.server.url}/someone/model/commit/{'0' * 40}"
            return self._answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})
        return self._answer(404, {"error": self.path})

    def do_GET(self):
        self.server.calls.append(self.path)
        return self._answer(404, {"error": self.path})

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.calls, server.repos, server.commits, server.files = [], [], [], {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def test_the_exports_files_are_uploaded_and_nothing_else(exported, tmp_path, server):
    folder = shutil.copytree(exported, tmp_path / "hf")
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore about it.\n")
    (folder / "certificate.json").write_text("{}")
    (folder / "certificate.svg").write_text("<svg/>")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "stellarbyte", "convert", "push", str(folder), "someone/model", "--private"]
    command += ["--message", "first"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "notes.txt"}
    assert server.files == expected
    assert server.commits == ["first"]
    assert (server.repos[0]["name"], server.repos[0]["organization"]) == ("model", "someone")
    assert server.repos[0].get("visibility", server.repos[0].get("private")) in ("private", True)
    assert done.stdout == f"{server.url}/someone/model: {len(expected)} files of {folder}\n"


@pytest.mark.parametrize(
    ("repo", "token", "complaint"),
    [
        ("someone/model", None, "log in by `hf auth login`, or set HF_TOKEN"),
        ("someone/forbidden", TOKEN, "the token may not write there"),
        ("model", TOKEN, "'model' is no name of a repository: write user/name"),
        ("someone/gone", TOKEN, "someone/gone cannot be written at http://127.0.0.1:9: "),
    ],
)
def test_refusals_are_one_sentence(exported, server, tmp_path, monkeypatch, capsys, repo, token, complaint):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9" if repo.endswith("gone") else server.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["convert", "push", str(exported), repo]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("stellarbyte: error: ") and said.err.count("\n") == 1, said.err
    assert complaint in said.err
    assert server.files == {}


class TestFolders:
    def test_a_folder_that_is_no_export(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no stellarbyte_export\.json"):
            hub.exported_files(tmp_path)

    def test_weights_that_have_changed(self, exported, tmp_path):
        folder = shutil.copytree(exported, tmp_path / "hf")
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        with pytest.raises(UserError, match=r"model\.safetensors has changed since it was exported"):
            hub.exported_files(folder)

    @pytest.mark.parametrize("name", ["../secret", "*", "id_rsa"])
    def test_a_manifest_that_names_others_files(self, exported, tmp_path, name):
        folder = shutil.copytree(exported, tmp_path / "hf")
        manifest = json.loads((folder / "stellarbyte_export.json").read_text())
        manifest["files"][name] = "0" * 64
        (folder / "stellarbyte_export.json").write_text(json.dumps(manifest))
        (tmp_path / "secret").write_text("mine")
        (folder / "id_rsa").symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match=r"lacks the file .* of its export"):
            hub.exported_files(folder)
