"""Data sets on the Hub: pushed by real clients to a server on loopback, loaded back in a fresh cache."""

import fnmatch
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import datasets
import pytest
import yaml
from conftest import TASKS
from hub import running_hub

from dataset_builder import select_tasks
from dataset_builder.__main__ import main
from dataset_builder.builder import build

REACH, BALL, PENDULUM, PONG = TASKS
REPOSITORY = "jat-project/jat-dataset"

LOAD = """
import json, sys
from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset
repository, folder, tasks = sys.argv[1], sys.argv[2], sys.argv[3:]
assert get_dataset_config_names(repository) == sorted(tasks), get_dataset_config_names(repository)
for task in tasks:
    for split in get_dataset_split_names(folder, task):
        local = load_dataset(folder, task, split=split).with_format("arrow")[:]
        pushed = load_dataset(repository, task, split=split)
        assert pushed.features == load_dataset(folder, task, split=split).features
        assert pushed.with_format("arrow")[:].equals(local), (task, split)
    stream = load_dataset(repository, task, split="train", streaming=True).with_format("arrow")
    first = next(iter(stream))
    assert first.to_pylist() == load_dataset(folder, task, split="train").with_format("arrow")[:1].to_pylist(), task
"""


@pytest.fixture(params=["regular", "lfs"])
def hub(request):
    """With Xet's client the server takes all files into the repository, without it large ones into its store."""
    with running_hub(lfs=(".parquet", ".png") if request.param == "lfs" else ()) as server:
        yield server


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """Two tasks of 12 episodes."""
    folder = tmp_path_factory.mktemp("small") / "data"
    build([BALL, "mujoco-reacher"], folder, episodes=12, progress=False)
    return folder


def start(hub, home, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "dataset_builder", "push", "--repo-id", REPOSITORY, *map(str, arguments)],
        env={**os.environ, **hub.environment(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def push(hub, home, *arguments):
    process = start(hub, home, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "hf_loopback" not in output
    return output


def load(hub, home, folder, *tasks):
    command = [sys.executable, "-c", LOAD, REPOSITORY, str(folder), *tasks]
    environment = {**os.environ, **hub.environment(home)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr


def files(hub, revision="main"):
    return hub.files("datasets", REPOSITORY, revision)


def published(hub, tasks, folder):
    """The tasks' files are those of the folder."""
    local = {str(p.relative_to(folder)): p.read_bytes() for task in tasks for p in (folder / task).iterdir()}
    remote = {path: content for path, content in files(hub).items() if path.split("/")[0] in tasks}
    return local == remote


def check_every_state(hub):
    """Whatever was committed in between: a card names whole sets of shards, and no others."""
    states = hub.repositories["datasets", REPOSITORY].commits.values()
    for state in states:
        if "README.md" not in state:
            continue
        header = yaml.safe_load(state["README.md"].decode().split("---")[1])
        for config in header["configs"]:
            for entry in config["data_files"]:
                matches = fnmatch.filter(state, entry["path"])
                assert len(matches) == int(entry["path"].removesuffix(".parquet")[-5:])
    return len(states)


def test_pushed_and_loaded_back(hub, tmp_path, data_folder):
    output = push(hub, tmp_path / "pusher", data_folder)
    assert output.splitlines()[-1] == f"{hub.url}/datasets/{REPOSITORY}"
    assert published(hub, TASKS, data_folder)
    load(hub, tmp_path / "user", data_folder, *TASKS)
    assert not any(path.startswith(".") for path in files(hub))


def test_what_is_there_is_not_sent_again(hub, tmp_path, small_data):
    push(hub, tmp_path, small_data)
    before, hub.requests[:] = dict(files(hub)), []
    push(hub, tmp_path, small_data)
    assert files(hub) == before
    assert not [path for method, path in hub.requests if method == "PUT" or "/commit/" in path]


def test_other_tasks_of_the_repository_stay(hub, tmp_path, small_data):
    push(hub, tmp_path, small_data, "--tasks", "babyai")
    assert {path.split("/")[0] for path in files(hub)} == {"README.md", "assets", BALL}
    push(hub, tmp_path, small_data, "--tasks", "mujoco-*")
    load(hub, tmp_path / "user", small_data, BALL, "mujoco-reacher")
    assert f"| {BALL} |" in files(hub)["README.md"].decode()


def test_an_extended_data_set_replaces_the_old_one(hub, tmp_path):
    folder = build(BALL, tmp_path / "data", episodes=12, progress=False)
    push(hub, tmp_path, folder)
    build(BALL, folder, episodes=25, progress=False)
    push(hub, tmp_path, folder)
    assert published(hub, [BALL], folder)
    assert check_every_state(hub) > 2
    load(hub, tmp_path / "user", folder, BALL)


def test_a_private_repository(hub, tmp_path, small_data):
    push(hub, tmp_path, small_data, "--private")
    assert hub.repositories["datasets", REPOSITORY].private


def test_a_pull_request(hub, tmp_path, small_data):
    """Nothing changes but in the pull request, of which there is one however often it is pushed."""
    for _ in range(2):
        output = push(hub, tmp_path, small_data, "--create-pr")
        assert output.splitlines()[-1] == f"{hub.url}/datasets/{REPOSITORY}/discussions/1"
    assert files(hub) == {}
    assert {path.split("/")[0] for path in files(hub, "refs/pr/1")} >= {"README.md", BALL, "mujoco-reacher"}
    assert "refs/pr/2" not in hub.repositories["datasets", REPOSITORY].branches


def test_two_push_at_once(hub, tmp_path, small_data):
    """Each from a copy of the folder; neither forgets the other's task."""
    copy = tmp_path / "copy"
    shutil.copytree(small_data, copy)
    processes = [
        start(hub, tmp_path / "a", small_data, "--tasks", BALL),
        start(hub, tmp_path / "b", copy, "--tasks", "mujoco-reacher"),
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    check_every_state(hub)
    load(hub, tmp_path / "user", small_data, BALL, "mujoco-reacher")


@pytest.mark.parametrize("fault", [500, 503, 429, 412, "cut", "cut after"])
def test_a_fault(hub, tmp_path, small_data, fault):
    """Of every third request that writes."""
    hub.faults = iter([None, None, fault] * 2)
    push(hub, tmp_path, small_data)
    assert fault in hub.faults_injected
    assert published(hub, [BALL, "mujoco-reacher"], small_data)
    check_every_state(hub)


@pytest.mark.slow
def test_many_faults_and_kills(hub, tmp_path, small_data):
    """20 pushes, each with a random fault of the Hub or killed with -9 at a random moment; nothing lost or doubled."""
    chance = random.Random(0)
    kinds = [500, 502, 503, 504, 429, 412, "cut", "cut after", "kill", "kill"]
    chosen = [chance.choice(kinds) for _ in range(20)]
    for number, kind in enumerate(chosen):
        if number % 4 == 0:  # with something new to push
            folder = build(BALL, tmp_path / "data", episodes=12 + 5 * number, progress=False)
        hub.faults = iter([None] * chance.randrange(5) + [kind if kind != "kill" else None])
        process = start(hub, tmp_path, folder)
        if kind == "kill":
            before = len(hub.requests)
            while len(hub.requests) < before + chance.randrange(2, 14) and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        assert kind == "kill" or process.returncode == 0
        check_every_state(hub)
    push(hub, tmp_path, folder)
    assert published(hub, [BALL], folder)
    load(hub, tmp_path / "user", folder, BALL)


@pytest.mark.slow
def test_every_task_that_has_an_expert_without_a_planner(hub, tmp_path):
    """120 tasks in one folder, verified, pushed, and loaded back equal."""
    games = [task.name for task in select_tasks("atari") if task.expert_name == "network"]
    build(games, tmp_path / "data", episodes=5, max_episode_steps=200, num_workers=2, progress=False)
    folder = build(["babyai", "metaworld", "mujoco"], tmp_path / "data", episodes=5, num_workers=2, progress=False)
    assert main(["verify", str(folder), "--num-workers", "2"]) == 0
    push(hub, tmp_path / "pusher", folder)
    names = [task.name for task in select_tasks(["babyai", "metaworld", "mujoco", *games])]
    assert len(names) == 120
    assert published(hub, names, folder)
    load(hub, tmp_path / "user", folder, *names)


class TestRefusals:
    def refused(self, capsys, *arguments):
        assert main(["push", "--repo-id", REPOSITORY, *map(str, arguments)]) == 2
        return capsys.readouterr().err

    def test_no_token(self, capsys, monkeypatch, small_data, tmp_path):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        assert "hf auth login" in self.refused(capsys, small_data)

    @pytest.fixture
    def _token(self, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_loopback")

    @pytest.mark.usefixtures("_token")
    def test_tasks_that_are_not_there(self, capsys, small_data):
        error = self.refused(capsys, small_data, "--tasks", "metaworld")
        assert f"no finished data of 'metaworld'; it has {BALL}, mujoco-reacher" in error

    @pytest.mark.usefixtures("_token")
    def test_an_unfinished_build(self, capsys, tmp_path):
        folder = build(BALL, tmp_path / "data", episodes=2, progress=False)
        next((folder / BALL).glob("*.parquet")).unlink()
        assert "run the command that built it again" in self.refused(capsys, folder)


def test_a_token_that_may_not_write(hub, tmp_path, small_data):
    """An error that does not pass is told at once, without the token."""
    hub.faults = iter([403])
    process = start(hub, tmp_path, small_data)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "403" in output
    assert "permissions" in output
    assert "hf_loopback" not in output


def test_the_card_of_the_repository(hub, tmp_path, small_data):
    push(hub, tmp_path, small_data)
    card = files(hub)["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert [info["config_name"] for info in header["dataset_info"]] == [BALL, "mujoco-reacher"]
    assert header["license"] == "apache-2.0"
    assert f'load_dataset("{REPOSITORY}", "{BALL}")' in card
    for picture in ("assets/returns.png", "assets/babyai.png"):
        assert f"![{picture}]({picture})" in card
        assert files(hub)[picture].startswith(b"\x89PNG")
    manifest = json.loads((small_data / BALL / "manifest.json").read_text())
    assert f"| bot | 12 | {manifest['timesteps']} |" in card
    assert datasets.__version__ in card
