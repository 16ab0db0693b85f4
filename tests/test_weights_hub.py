"""A world model to the Hub and back, against a small Hub on this machine; and every way in which that can fail."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from ruamel.yaml import YAML

from hwm import HumanWorldModel
from hwm.errors import WeightsError
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.models.world_model import TimeGrid
from hwm.weights.card import model_card
from hwm.weights.hub import is_repo_id

REPO = "someone/my-world"
TOKEN = "hf_secret"


@dataclass
class Hub:
    """What the Hub holds: repository → branch → file → bytes; and what was asked of it."""

    url: str = ""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    sent_share: float = 1.0
    """How much of a file is sent before the connection is cut."""


class Handler(BaseHTTPRequestHandler):
    """The few endpoints of the Hub that a model needs, as huggingface_hub calls them."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: int(len(body) * self.hub.sent_share)])
            if self.hub.sent_share < 1:
                self.close_connection = True

    def refuse(self, code: str, status: int = 404) -> None:
        self.answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def begin(self) -> list[str]:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        return [unquote(part) for part in path.strip("/").split("/")]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.begin()
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in self.hub.repos:
            return self.refuse("RepoNotFound")
        branches = self.hub.repos[repo]
        commits = {commit_of(files): files for files in branches.values()} | branches
        rest = parts[4:] if parts[0] == "api" else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in commits:
            return self.refuse("RevisionNotFound")
        files = commits[revision]
        if parts[0] != "api":
            content = files.get(rest[2])
            if content is None:
                return self.refuse("EntryNotFound")
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(content, headers={"ETag": etag, "X-Repo-Commit": commit_of(files)})
        if rest and rest[0] == "tree":
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(rows)
        siblings = [{"rfilename": name} for name in files]
        about = {"id": repo, "sha": commit_of(files), "private": self.hub.private[repo], "siblings": siblings}
        return self.answer(about)

    def do_POST(self) -> None:
        parts, hub = self.begin(), self.hub
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if parts[1] == "validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse("Forbidden", 403)
        if parts[1] == "repos":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if repo in hub.repos:
                return self.answer({"url": f"{hub.url}/{repo}"}, 409)
            hub.repos[repo], hub.private[repo] = (
                {"main": {}},
                bool(asked.get("private") or asked.get("visibility") == "private"),
            )
            return self.answer({"url": f"{hub.url}/{repo}", "id": repo, "name": repo})
        repo, what, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if what == "branch":
            hub.repos[repo].setdefault(branch, dict(hub.repos[repo]["main"]))
            return self.answer({})
        if what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        assert what == "commit"
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                hub.messages.append(entry["value"]["summary"])
            else:
                hub.repos[repo][branch][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = commit_of(hub.repos[repo][branch])
        return self.answer({"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit})


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    held = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfThisHub", (Handler,), {"hub": held}))
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield held
    server.shutdown()
    server.server_close()
    thread.join()


def new_world(gaze: bool = True) -> HumanWorldModel:
    torch.manual_seed(0)
    decoder = GazelleSpec(16, depth=1, num_heads=2, position_grid=(4, 4))
    gazelle = GazeLLE(DINOv2(DINOv2Spec(24, 1, 2, position_side=4)), decoder) if gaze else None
    predictor = GazePredictor(PredictorSpec(32, 16 if gaze else None, 24, 2, 2))
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.normal_(std=0.1)
    observer = Observer(VJEPA2Encoder(EncoderSpec(32, 2, 2, patch_size=8)), gazelle)
    grid = TimeGrid(4.0, "frame", 32, 56 if gaze else None)
    return HumanWorldModel(observer, predictor, grid).requires_grad_(False).eval()


def outputs(world: HumanWorldModel) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames_BTFRYX = torch.randn(1, 2, 1, 3, 32, 32, generator=generator)
    gaze_BTRYX = torch.randn(1, 2, 3, 56, 56, generator=generator) if world.has_gaze else None
    seen = world.observe(frames_BTFRYX, gaze_BTRYX)
    future = world.imagine(seen.z_SND, seen.scene_SNG, 2)
    return [tensor for tensor in (*seen, *future) if tensor is not None]


def pushed(hub: Hub, **more: Any) -> HumanWorldModel:
    world = new_world()
    world.push_to_hub(REPO, token=TOKEN, endpoint=hub.url, **more)
    hub.requests.clear()
    return world


@pytest.mark.parametrize("gaze", [True, False])
@pytest.mark.parametrize("branch", [None, "v1"])
def test_to_the_hub_and_back(tmp_path: Path, hub: Hub, gaze: bool, branch: str | None) -> None:
    world = new_world(gaze)
    url = world.push_to_hub(
        REPO, branch, token=TOKEN, endpoint=hub.url, commit_message="A better one", notes={"run": "r1"}
    )
    files = hub.repos[REPO][branch or "main"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert url == f"{hub.url}/{REPO}/commit/{commit_of(files)}"
    assert hub.messages == ["A better one"]
    assert json.loads(files["config.json"])["notes"] == {"run": "r1"}
    assert files["README.md"].decode() == model_card(world, REPO, {"run": "r1"})
    hub.requests.clear()

    # By branch and by commit; only the two files are fetched, and the token goes along.
    again = HumanWorldModel.from_pretrained(REPO, branch, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
    fetched = {path.rpartition("/")[2] for command, path, _ in hub.requests if command == "GET" and "/resolve/" in path}
    assert fetched == {"model.safetensors", "config.json"}
    assert {authorization for _, _, authorization in hub.requests} == {f"Bearer {TOKEN}"}
    by_commit = HumanWorldModel.from_pretrained(REPO, commit_of(files), endpoint=hub.url, cache_dir=tmp_path)
    for found in (again, by_commit):
        assert all(map(torch.equal, outputs(found), outputs(world)))
        assert len(outputs(found)) == len(outputs(world))
        assert not found.training
        assert not any(parameter.requires_grad for parameter in found.parameters())


def test_reading_draws_no_weights_first(tmp_path: Path) -> None:
    new_world().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    HumanWorldModel.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_downloaded_is_read_offline(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pushed(hub)
    with pytest.raises(WeightsError, match="did not come from the Hub"):
        HumanWorldModel.from_pretrained(REPO, endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    assert not hub.requests
    HumanWorldModel.from_pretrained(REPO, endpoint=hub.url, cache_dir=tmp_path)
    hub.requests.clear()
    again = HumanWorldModel.from_pretrained(REPO, endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    by_environment = HumanWorldModel.from_pretrained(REPO, cache_dir=tmp_path)
    assert not hub.requests
    for found in (again, by_environment):
        assert all(map(torch.equal, outputs(found), outputs(world)))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        HumanWorldModel.from_pretrained("someone/other", cache_dir=tmp_path)


def test_a_local_folder_goes_before_the_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(hub)
    monkeypatch.chdir(tmp_path)
    local = new_world(gaze=False)
    local.save_pretrained(REPO)
    assert not HumanWorldModel.from_pretrained(REPO, endpoint=hub.url).has_gaze
    with pytest.raises(WeightsError, match="no revisions"):
        HumanWorldModel.from_pretrained(REPO, "main", endpoint=hub.url)
    Path("someone/empty").mkdir()
    with pytest.raises(WeightsError, match=r"there is no someone/empty/config\.json"):
        HumanWorldModel.from_pretrained("someone/empty", endpoint=hub.url)
    # What is written as a path is never looked for elsewhere.
    for path in (Path("someone/nothing"), "./someone/nothing", "a/b/c", "nothing", "../x/y", "someone/nothing/"):
        with pytest.raises(WeightsError, match="there is no"):
            HumanWorldModel.from_pretrained(path, endpoint=hub.url)
    assert not hub.requests


def refused(hub: Hub, cache: Path, repo: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        HumanWorldModel.from_pretrained(repo, revision, endpoint=hub.url, token=TOKEN, cache_dir=cache)
    assert TOKEN not in str(caught.value)
    assert all("\n" not in str(part) for part in (caught.value.problem, caught.value.found, caught.value.fix))
    return str(caught.value)


def test_what_is_not_there_is_one_clear_error(tmp_path: Path, hub: Hub) -> None:
    pushed(hub)
    message = refused(hub, tmp_path, "someone/other")
    assert "someone/other: there is no such folder" in message
    assert "hf auth login" in message
    message = refused(hub, tmp_path, revision="v7")
    assert f"{REPO} at revision v7" in message
    assert "a branch, a tag or a commit" in message
    for name in ("config.json", "model.safetensors"):
        files = dict(hub.repos[REPO]["main"])
        del files[name]
        hub.repos[REPO]["without"] = files
        assert f"no {name}" in refused(hub, tmp_path, revision="without")
    hub.repos[REPO]["without"] = {"README.md": b"nothing"}
    assert "no model of ours" in refused(hub, tmp_path, revision="without")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, hub: Hub, name: str) -> None:
    pushed(hub)
    files = hub.repos[REPO]["main"]
    files[name] = files[name][: len(files[name]) * 2 // 3]
    assert name in refused(hub, tmp_path)


def test_a_connection_that_is_cut_is_one_clear_error(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(hub)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    hub.sent_share = 0.5
    assert REPO in refused(hub, tmp_path)
    hub.sent_share = 1.0
    HumanWorldModel.from_pretrained(REPO, endpoint=hub.url, cache_dir=tmp_path)


def test_a_changed_file_is_noticed(tmp_path: Path, hub: Hub) -> None:
    pushed(hub)
    content = bytearray(hub.repos[REPO]["main"]["model.safetensors"])
    content[-3] ^= 1
    hub.repos[REPO]["main"]["model.safetensors"] = bytes(content)
    assert "does not belong" in refused(hub, tmp_path)


def test_no_hub_is_one_clear_error(tmp_path: Path, hub: Hub) -> None:
    away = Hub(url="http://127.0.0.1:9")
    message = refused(away, tmp_path)
    assert "check the connection" in message
    assert not hub.requests


def test_a_push_that_is_refused_is_one_clear_error(hub: Hub) -> None:
    world = new_world(gaze=False)
    with pytest.raises(WeightsError, match="was not written") as caught:
        world.push_to_hub(REPO, token="hf_wrong", endpoint=hub.url)
    assert "hf_wrong" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"owner/name"):
        world.push_to_hub("my-world", token=TOKEN, endpoint=hub.url)
    assert not hub.repos
    world.push_to_hub(REPO, token=TOKEN, endpoint=hub.url)
    before = dict(hub.repos[REPO]["main"])
    with pytest.raises(WeightsError, match="public already"):
        new_world().push_to_hub(REPO, token=TOKEN, endpoint=hub.url, private=True)
    assert hub.repos[REPO]["main"] == before
    new_world().push_to_hub("someone/secret", token=TOKEN, endpoint=hub.url, private=True)
    assert hub.private == {REPO: False, "someone/secret": True}


@pytest.mark.parametrize("gaze", [True, False])
def test_the_card_tells_what_the_file_holds(gaze: bool) -> None:
    world = new_world(gaze)
    card = model_card(world, REPO, {"run": "r1", "note": "``` <script>"})
    _, header, body = card.split("---\n", 2)
    about = YAML(typ="safe").load(header)
    assert about["library_name"] == "hwm"
    assert about["license"] == ("apache-2.0" if gaze else "mit")
    assert ("gaze" in about["tags"]) == gaze
    assert f'HumanWorldModel.from_pretrained("{REPO}")' in body
    counts = [int(row.split("|")[3]) for row in body.splitlines() if re.match(r"\| (Encoder|Gazelle|Predictor)", row)]
    assert sum(counts) == sum(parameter.numel() for parameter in world.parameters())
    assert ("Gaze in an egocentric view is a guess" in body) == gaze
    assert ("DINOv2, width 24" in body) == gaze
    assert body.strip().startswith("# my-world\n")
    assert "4 steps a second, one frame a step." in body
    assert ("56 × 56 for Gazelle" in body) == gaze
    assert ("gaze_frames_BTRYX" in body) == gaze
    # Remarks stay inside of their block.
    assert sum(line.startswith("```") for line in body.splitlines()) == 4
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": None}, "wrong spec"),
        ({"gazelle": None, "backbone": None}, "its parts do not go together"),
    ],
)
def test_sizes_that_make_no_world_model_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    new_world().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=words):
        HumanWorldModel.from_pretrained(tmp_path)


def test_repository_names() -> None:
    assert all(map(is_repo_id, ("a/b", "some-one/my_world.v1", "A1/b")))
    assert not any(map(is_repo_id, ("a", "a/b/c", "./b", "../b", "a/", "/b", "a/b\n", "a b/c", "~/b", "ä/b", "a\\b")))
