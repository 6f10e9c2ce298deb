"""Checkpoints of the Hub: a Hub of the tests' own serves them, and its log says what was fetched."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from models import save, transformers_model

ROOT = Path(__file__).resolve().parents[1]
MAIN, OTHER = "1" * 40, "2" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves `repositories[name][commit]`, a folder each, as the Hub does; `log` holds (method, path, range)."""

    def __init__(self, repositories: dict[str, dict[str, Path]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.log = repositories, []
        self.cut_short: str | None = None
        self.breaks_off = False

    @property
    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for method, path, _ in self.log
                if method == "GET" and "/resolve/" in path]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(
        self, code: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub: Hub = self.server  # type: ignore[assignment]
        hub.log.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        commits = hub.repositories.get(name, {})
        asked = (parts[5] if len(parts) > 5 else "main") if parts[0] == "api" else parts[3] if len(parts) > 3 else ""
        commit = {"main": MAIN, "old": OTHER}.get(asked, asked)
        if commit not in commits:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound" if not commits else "RevisionNotFound"})
        elif parts[0] == "api":
            files = sorted(commits[commit].iterdir())
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{file.name}-{commit[:4]}"}
                for file in files
            ]
            info = {"id": name, "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}
            listing = tree if "tree" in parts else info
            self._answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        else:
            file = commits[commit] / "/".join(parts[4:])
            if not file.is_file():
                self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
                return
            body, headers = file.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{file.name}-{commit[:4]}"'}
            if hub.breaks_off and file.suffix == ".safetensors":
                self.close_connection = True
                return
            given = self.headers.get("Range")
            if given and self.command == "GET":
                first, last = given.removeprefix("bytes=").split("-")
                start, stop = int(first), min(int(last) + 1, len(body)) if last else len(body)
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
                self._answer(206, body[start:stop], headers)
            elif hub.cut_short == file.name and self.command == "GET":
                hub.cut_short = None
                self._answer(200, body, headers, cut=len(body) // 2)
            else:
                self._answer(200, body, headers)

    do_HEAD = do_GET


@pytest.fixture()
def hub(tmp_path):
    sharded = save(transformers_model("qwen2"), tmp_path / "sharded", max_shard_size="60KB")
    single = save(transformers_model("llama2"), tmp_path / "single")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for folder in (sharded, single, pickled):
        for name in ("tokenizer.json", "modeling_own.py", "pytorch_model.bin", "model.onnx", "consolidated.pth"):
            (folder / name).write_text("{}")
    for folder in (sharded, single):
        (folder / "consolidated.safetensors").write_bytes(b"a second copy of the weights")
    (pickled / "config.json").write_text("{}")
    server = Hub({
        "a/sharded": {MAIN: sharded}, "a/single": {MAIN: single, OTHER: sharded}, "a/pickled": {MAIN: pickled},
    })
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


OPEN = (
    "import sys\nfrom numllm.checkpoint import Checkpoint\nfrom numllm.errors import NumLLMError\n"
    "try:\n    found = Checkpoint.open(sys.argv[1])\n"
    "except NumLLMError as error:\n    sys.exit(f'Error: {error}')\n"
    "print(found.config.architecture, len(found.tensors), found.folder.name)"
)


def opened(hub: Hub, cache: Path, name: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`Checkpoint.open(name)` in a process of its own, with this Hub and this cache."""
    return run(hub, cache, "-c", OPEN, name, **more)


def inspected(hub: Hub, cache: Path, name: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`numllm inspect name --json` in a process of its own, with this Hub and this cache."""
    return run(hub, cache, "-m", "numllm", "inspect", name, "--json", **more)


def run(hub: Hub, cache: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, with this Hub and this cache."""
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "5",
        "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", **more,
    }
    for key in ("HF_HUB_CACHE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        environment.pop(key, None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def test_only_the_files_that_are_needed_are_fetched_and_the_cache_serves_them_offline(hub, tmp_path):
    first = opened(hub, tmp_path / "cache", "a/sharded")
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == ["Qwen2ForCausalLM", "27", MAIN]
    index = json.loads((hub.repositories["a/sharded"][MAIN] / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2 and shards <= set(hub.fetched)
    assert set(hub.fetched) - shards == {
        "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
    }
    assert len(hub.fetched) == len(set(hub.fetched))
    hub.log.clear()
    again = opened(hub, tmp_path / "cache", "a/sharded", HF_HUB_OFFLINE="1")
    assert again.stdout == first.stdout and not hub.log


def test_revisions(hub, tmp_path):
    for revision, wanted in (("@old", "Qwen2ForCausalLM"), (f"@{MAIN}", "LlamaForCausalLM"), ("", "LlamaForCausalLM")):
        found = opened(hub, tmp_path / "cache", f"a/single{revision}")
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith(wanted), revision
    missing = opened(hub, tmp_path / "cache", "a/single@nothing")
    assert missing.returncode == 1 and missing.stderr.startswith("Error: a/single@nothing: no such folder")


def test_a_download_that_broke_off_is_mended(hub, tmp_path):
    hub.cut_short = "model.safetensors"
    found = opened(hub, tmp_path / "cache", "a/single")
    if found.returncode:
        assert found.stderr.strip().splitlines()[-1].startswith("Error: a/single")
        found = opened(hub, tmp_path / "cache", "a/single")
    assert found.returncode == 0, found.stderr
    assert hub.cut_short is None and hub.fetched.count("model.safetensors") == 2
    assert hub.fetched.count("tokenizer.json") == 1


@pytest.mark.parametrize("name, offline, message", [
    ("a/pickled", "0", "has neither model.safetensors nor"),
    ("a/none", "0", "no such folder, and not to be had from the Hub"),
    ("a/sharded", "1", "no such folder, and not to be had from the Hub"),
])
def test_what_is_not_to_be_had_is_one_line(name, offline, message, hub, tmp_path):
    found = opened(hub, tmp_path / "cache", name, HF_HUB_OFFLINE=offline)
    error = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1 and error.startswith("Error: ") and message in error
    assert not any(file.endswith((".bin", ".py", ".pth", ".onnx")) for file in hub.fetched)


@pytest.mark.parametrize("name", ["sharded", "single"])
def test_inspecting_fetches_headers_and_no_weights(name, hub, tmp_path):
    def found(which: str, **more: str) -> dict[str, Any]:
        process = inspected(hub, tmp_path / "cache", which, **more)
        assert process.returncode == 0, process.stderr
        result = json.loads(process.stdout.splitlines()[-1])
        assert result.pop("checkpoint") == which and "cannot be read" in result.pop("tokenizer")["error"]
        return result

    here = found(str(hub.repositories[f"a/{name}"][MAIN]))
    assert found(f"a/{name}") == here
    ranges = [given for method, path, given in hub.log if method == "GET" and path.endswith(".safetensors")]
    assert ranges and all(given and given.split("-")[1] for given in ranges)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert opened(hub, tmp_path / "cache", f"a/{name}").returncode == 0
    hub.log.clear()
    assert found(f"a/{name}", HF_HUB_OFFLINE="1") == here and not hub.log  # of what is in the cache, nothing is asked


@pytest.mark.parametrize("spoil, message", [
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "a/single: "),
    (lambda folder: (folder / "model.safetensors").unlink(), "not to be had from the Hub"),
    (lambda folder: (folder / "config.json").write_text('{"architectures": ["Other"]}'), "Other"),
])
def test_what_cannot_be_inspected_is_one_line(spoil, message, hub, tmp_path):
    spoil(hub.repositories["a/single"][MAIN])
    found = inspected(hub, tmp_path / "cache", "a/single")
    assert found.returncode == 1 and found.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert message in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("offline", ["0", "1"])
def test_headers_that_cannot_be_fetched_are_one_line(offline, hub, tmp_path):
    """The rest is in the cache; then the connection breaks off, or there is none."""
    assert inspected(hub, tmp_path / "cache", "a/single").returncode == 0
    hub.breaks_off = True
    found = inspected(hub, tmp_path / "cache", "a/single", HF_HUB_OFFLINE=offline)
    error = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1 and error.startswith("Error: a/single: no such folder, and not to be had from the Hub")
    assert "Traceback" not in found.stderr
