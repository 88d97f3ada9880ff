import hashlib
import json
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
from conftest import TASKS
from datasets import Features, Image, List, Value, get_dataset_config_names, load_dataset

from dataset_builder import builder, make_env
from dataset_builder.__main__ import main
from dataset_builder.builder import JatDataset, Recipe, build, generate_episodes, plan_shards, split_of

REACH, BALL, PENDULUM, PONG = TASKS

COLUMNS = {
    REACH: {
        "continuous_observations": List(List(Value("float32"))),
        "continuous_actions": List(List(Value("float32"))),
        "rewards": List(Value("float32")),
    },
    BALL: {
        "text_observations": List(Value("string")),
        "discrete_observations": List(List(Value("int64"))),
        "discrete_actions": List(Value("int64")),
        "rewards": List(Value("float32")),
    },
    PENDULUM: {
        "continuous_observations": List(List(Value("float32"))),
        "continuous_actions": List(List(Value("float32"))),
        "rewards": List(Value("float32")),
    },
    PONG: {
        "image_observations": List(Image()),
        "discrete_actions": List(Value("int64")),
        "rewards": List(Value("float32")),
    },
}
FEW = {"episodes": 6, "progress": False}


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestPublishedForm:
    @pytest.mark.parametrize("task", TASKS)
    def test_columns(self, load_task, task):
        dataset = load_task(task)
        assert dataset.features == Features(COLUMNS[task])
        assert list(dataset[0]) == list(COLUMNS[task])
        assert len({len(values) for values in dataset[0].values()}) == 1

    def test_metaworld_reach(self, load_task):
        row = load_task(REACH)[0]
        assert list(row) == ["continuous_observations", "continuous_actions", "rewards"]
        assert np.shape(row["continuous_observations"]) == (500, 39)
        assert np.shape(row["continuous_actions"]) == (500, 4)
        assert np.abs(row["continuous_actions"]).max() <= 1

    def test_babyai(self, load_task):
        row = load_task(BALL)[0]
        assert set(row["text_observations"]) == {"go to the red ball"}
        assert np.shape(row["discrete_observations"])[1] == 148
        assert row["rewards"][-1] > 0
        assert not any(row["rewards"][:-1])

    def test_atari(self, load_task):
        row = load_task(PONG)[0]
        frame = np.asarray(row["image_observations"][-1])
        assert (frame.shape, frame.dtype) == ((84, 84, 4), np.uint8)

    def test_images_are_stored_without_loss(self, load_task):
        recipe = Recipe(task=PONG, expert="random", max_episode_steps=20)
        (episode, _), *_ = generate_episodes(recipe, (0,))
        stored = np.stack([np.asarray(image) for image in load_task(PONG)[0]["image_observations"]])
        assert np.array_equal(stored, episode.observations["image_observation"])

    def test_configurations_and_streaming(self, data_folder):
        assert get_dataset_config_names(str(data_folder)) == sorted(TASKS)
        stream = load_dataset(str(data_folder), REACH, split="train", streaming=True)
        assert np.shape(next(iter(stream))["continuous_observations"]) == (500, 39)

    def test_every_tenth_episode_is_a_test_episode(self, load_task):
        assert (len(load_task(REACH)), len(load_task(REACH, "test"))) == (11, 1)
        assert [index for index in range(30) if split_of(index) == "test"] == [9, 19, 29]

    def test_rewards_are_replayed_exactly(self, data_folder, load_task):
        """The stored actions, executed from the stored seeds, earn the stored rewards."""
        records = json.loads((data_folder / REACH / "manifest.json").read_text())["episodes"]
        row = load_task(REACH)[3]
        assert records[3]["index"] == 3
        with make_env(REACH) as env:
            env.reset(seed=records[3]["seed"])
            rewards = [env.step(np.float32(action))[1] for action in row["continuous_actions"]]
        assert np.float32(rewards).tolist() == row["rewards"]


class TestDeterminism:
    @pytest.mark.parametrize("task", [REACH, BALL, "mujoco-reacher"])
    def test_built_twice_and_by_two_workers_the_files_are_equal(self, tmp_path, task, monkeypatch):
        monkeypatch.setattr(builder, "DEFAULT_EPISODES_PER_SHARD", 2)
        first, second, parallel = (build(task, tmp_path / name, **FEW) for name in "abc")
        assert digest(first) == digest(second)
        parallel = build(task, tmp_path / "d", num_workers=2, **FEW)
        assert digest(first) == digest(parallel)

    def test_an_episode_does_not_depend_on_those_before_it(self):
        recipe = Recipe(task=REACH, expert="scripted")
        together = dict(zip((0, 1, 2), generate_episodes(recipe, (0, 1, 2)), strict=True))
        (alone, _), *_ = generate_episodes(recipe, (2,))
        assert np.array_equal(together[2][0].rewards, alone.rewards)

    def test_seeds_differ(self):
        recipes = [Recipe(task=BALL, expert="bot", seed=seed) for seed in (0, 1)]
        seeds = {episode.seed for recipe in recipes for episode, _ in generate_episodes(recipe, (0, 1, 2))}
        assert len(seeds) == 6

    @pytest.mark.slow
    def test_the_planner(self, tmp_path):
        """Its budget is counted in emulator steps: the same game on any machine."""
        options = {"episodes": 2, "max_episode_steps": 30, "progress": False}
        first = build(PONG, tmp_path / "a", **options)
        assert digest(first) == digest(build(PONG, tmp_path / "b", num_workers=2, **options))


class TestResume:
    def test_a_killed_build_goes_on(self, tmp_path):
        """kill -9 in the middle; the same command then finishes, keeps what was whole, and the result is the same."""
        command = [sys.executable, "-m", "dataset_builder", "build", "--tasks", REACH, "--episodes", "60", "--output"]
        killed = tmp_path / "killed"
        process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first = killed / REACH / "train-00000-of-00003.parquet"
        deadline = time.monotonic() + 120
        while not first.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = first.stat().st_mtime_ns
        assert not (killed / "README.md").exists()
        assert main([*command[3:], str(killed)]) == 0
        assert first.stat().st_mtime_ns == kept
        undisturbed = build(REACH, tmp_path / "undisturbed", episodes=60, progress=False)
        assert digest(killed) == digest(undisturbed)

    def test_more_episodes_extend_a_build(self, tmp_path, monkeypatch):
        monkeypatch.setattr(builder, "DEFAULT_EPISODES_PER_SHARD", 4)
        folder = build(BALL, tmp_path / "a", episodes=10, progress=False)
        whole = (folder / BALL / "train-00000-of-00003.parquet").read_bytes()
        build(BALL, folder, episodes=25, progress=False)
        assert (folder / BALL / "train-00000-of-00006.parquet").read_bytes() == whole
        assert digest(folder) == digest(build(BALL, tmp_path / "b", episodes=25, progress=False))

    def test_a_finished_build_is_left_alone(self, tmp_path):
        folder = build(BALL, tmp_path / "a", **FEW)
        times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
        build(BALL, folder, **FEW)
        assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}

    def test_tasks_are_added_to_a_folder(self, tmp_path):
        folder = build(BALL, tmp_path / "a", **FEW)
        build("mujoco-reacher", folder, **FEW)
        assert get_dataset_config_names(str(folder)) == [BALL, "mujoco-reacher"]


class TestRefusals:
    """Each before any work, with nothing written."""

    def refused(self, output, *arguments, capsys):
        before = digest(output) if output.is_dir() else None
        assert main(["build", "--output", str(output), *arguments]) == 2
        assert (digest(output) if output.is_dir() else None) == before
        return capsys.readouterr().err

    def test_an_unknown_task(self, tmp_path, capsys):
        error = self.refused(tmp_path / "a", "--tasks", "metaworld-reech", "--episodes", "2", capsys=capsys)
        assert "metaworld-reach" in error

    def test_a_missing_expert(self, tmp_path, capsys):
        error = self.refused(tmp_path / "a", "--tasks", "mujoco", "--episodes", "2", capsys=capsys)
        assert "mujoco-ant has no weights" in error
        assert "train_expert_mujoco.py --task mujoco-ant" in error

    def test_an_expert_of_another_domain(self, tmp_path, capsys):
        options = ("--tasks", REACH, "--episodes", "2", "--expert", "bot")
        assert "the bot plays BabyAI only, not metaworld-reach" in self.refused(tmp_path / "a", *options, capsys=capsys)

    def test_a_text_subset(self, tmp_path, capsys):
        assert "text subset" in self.refused(tmp_path / "a", "--tasks", "text", "--episodes", "2", capsys=capsys)

    @pytest.mark.parametrize("option", ["--episodes", "--num-workers", "--max-episode-steps"])
    def test_numbers_out_of_range(self, tmp_path, capsys, option):
        options = ["--tasks", REACH, "--episodes", "2", option, "0"]
        assert "must be at least 1, got 0" in self.refused(tmp_path / "a", *options, capsys=capsys)

    def test_a_folder_with_something_else(self, tmp_path, capsys):
        (tmp_path / "thesis.txt").write_text("...")
        error = self.refused(tmp_path, "--tasks", BALL, "--episodes", "2", capsys=capsys)
        assert "holds something else (thesis.txt)" in error

    def test_a_file(self, tmp_path, capsys):
        path = tmp_path / "file"
        path.write_text("...")
        assert "is a file" in self.refused(path, "--tasks", BALL, "--episodes", "2", capsys=capsys)

    def test_another_recipe(self, tmp_path, capsys):
        folder = build(BALL, tmp_path / "a", **FEW)
        error = self.refused(folder, "--tasks", BALL, "--episodes", "6", "--seed", "1", capsys=capsys)
        assert "built by another recipe" in error

    def test_fewer_episodes(self, tmp_path, capsys):
        folder = build(BALL, tmp_path / "a", **FEW)
        error = self.refused(folder, "--tasks", BALL, "--episodes", "2", capsys=capsys)
        assert "this build asks for 2 episodes only" in error

    def test_a_damaged_shard(self, tmp_path, capsys):
        folder = build(BALL, tmp_path / "a", **FEW)
        shard = next(folder.rglob("*.parquet"))
        shard.write_bytes(shard.read_bytes()[:-100])
        assert "damaged" in self.refused(folder, "--tasks", BALL, "--episodes", "6", capsys=capsys)

    def test_a_foreign_shard(self, tmp_path, capsys):
        folder = build(BALL, tmp_path / "a", **FEW)
        datasets.Dataset.from_dict({"a": [1]}).to_parquet(folder / BALL / "train-00000-of-00002.parquet")
        assert "not written by this builder" in self.refused(folder, "--tasks", BALL, "--episodes", "6", capsys=capsys)


def test_manifest_and_card(data_folder):
    manifest = json.loads((data_folder / BALL / "manifest.json").read_text())
    assert manifest["recipe"] == {"task": BALL, "expert": "bot", "seed": 0, "max_episode_steps": None}
    assert [record["index"] for record in manifest["episodes"]] == list(range(12))
    assert all(record["success"] for record in manifest["episodes"])
    card = (data_folder / "README.md").read_text()
    assert "| babyai-go-to-red-ball-no-dists | go to the red ball, the only object | bot | 12 |" in card
    assert "--max-episode-steps 20" in card


def test_dropped_starts_are_counted():
    """The bot gives up about every second start of this task; other starts take their places."""
    recipe = Recipe(task="babyai-unlock-to-unlock", expert="bot")
    played = list(generate_episodes(recipe, tuple(range(6))))
    assert sum(dropped for _, dropped in played) > 0
    assert all(episode.success for episode, _ in played)


def test_shards_are_planned_for_any_number_of_episodes():
    recipe = Recipe(task=REACH, expert="scripted")
    for episodes in (1, 9, 10, 251):
        shards = plan_shards(recipe, episodes)
        assert sorted(index for shard in shards for index in shard.indices) == list(range(episodes))
    few, more = plan_shards(recipe, 100), plan_shards(recipe, 101)
    assert set(few) - set(more) == {few[3]}


def test_the_builder_of_datasets(tmp_path):
    """The same rows through `datasets`' own builder interface."""
    interface = JatDataset(config_name=BALL, episodes=12, cache_dir=str(tmp_path / "cache"))
    interface.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    folder = build(BALL, tmp_path / "built", episodes=12, progress=False)
    rows = load_dataset("parquet", data_files=str(tmp_path / "out" / "*train*.parquet"), split="train")
    assert rows.to_list() == load_dataset(str(folder), BALL, split="train").to_list()
    assert len(JatDataset.BUILDER_CONFIGS) == 157


def test_list(capsys):
    assert main(["list", "--tasks", "mujoco", "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert any(line.startswith("mujoco-hopper") and "network" in line for line in lines)
    assert any(line.startswith("mujoco-ant") and "missing" in line for line in lines)
