import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import datasets
import numpy as np
import PIL.Image
import psutil
import pyarrow.parquet
import pytest
from conftest import TASKS, wait_until
from datasets import Features, Image, List, Value, get_dataset_config_names, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder import builder, get_task, load_episodes, make_env, select_tasks, shards, task_features
from dataset_builder.__main__ import main
from dataset_builder.builder import JatDataset, build, generate_episodes
from dataset_builder.shards import Recipe, lock_folder, origin, read_footer, read_part, split_of

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
        "episode_index": Value("int64"),
        "first_timestep": Value("int64"),
    },
}
FEW = {"episodes": 6, "progress": False}


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def play(recipe, *indices):
    """(episode, record) for each index."""
    return list(generate_episodes(get_task(recipe.task), recipe, indices))


def finished_episodes(folder):
    """Indices of the episodes that a build has finished."""
    records = [record for part in folder.glob(".parts/*/*") for _, record in read_part(part).episodes]
    records += [record for shard in folder.glob("*/*.parquet") for record in read_footer(shard)["episodes"]]
    return {(record["index"], record["seed"]) for record in records}


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestPublishedForm:
    @pytest.mark.parametrize("task", TASKS)
    def test_columns(self, load_task, task):
        dataset = load_task(task)
        assert dataset.features == Features(COLUMNS[task])
        assert list(dataset[0]) == list(COLUMNS[task])
        assert len({len(dataset[0][column]) for column in get_task(task).columns}) == 1

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
        [(episode, _)] = play(recipe, 0)
        stored = np.stack([np.asarray(image) for image in load_task(PONG)[0]["image_observations"]])
        with make_env(PONG) as env:
            observation, _ = env.reset(seed=episode.seed)
            assert np.array_equal(stored[0], observation["image_observation"])
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
        monkeypatch.setattr(builder, "EPISODES_PER_SHARD", 2)
        first, second, parallel = (build(task, tmp_path / name, **FEW) for name in "abc")
        assert digest(first) == digest(second)
        parallel = build(task, tmp_path / "d", num_workers=2, **FEW)
        assert digest(first) == digest(parallel)

    def test_an_episode_does_not_depend_on_those_before_it(self):
        recipe = Recipe(task=REACH, expert="scripted")
        *_, (last, _) = play(recipe, 0, 1, 2)
        [(alone, _)] = play(recipe, 2)
        assert np.array_equal(last.rewards, alone.rewards)

    def test_seeds_differ(self):
        recipes = [Recipe(task=BALL, expert="bot", seed=seed) for seed in (0, 1)]
        seeds = {episode.seed for recipe in recipes for episode, _ in play(recipe, 0, 1, 2)}
        assert len(seeds) == 6

    @pytest.mark.slow
    def test_the_planner(self, tmp_path):
        """Its budget is counted in emulator steps: the same game on any machine."""
        options = {"episodes": 2, "expert": "planner", "max_episode_steps": 30, "progress": False}
        first = build(PONG, tmp_path / "a", **options)
        assert digest(first) == digest(build(PONG, tmp_path / "b", num_workers=2, **options))


class TestResume:
    def start(self, output, *options, wait_for):
        """A build in a process of its own, killed with -9 as soon as so many episodes are finished.

        Returns the arguments that go on with it, and the processes that worked for it.
        """
        command = [sys.executable, "-m", "dataset_builder", "build", "--output", str(output), *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(finished_episodes(output)) >= wait_for, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return command[3:], workers

    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_a_killed_build_goes_on(self, tmp_path, monkeypatch, workers):
        """The same command then plays only what was not finished, and the result is the same."""
        killed = tmp_path / "killed"
        options = ["--tasks", REACH, "--episodes", "25", "--num-workers", workers]
        command, _ = self.start(killed, *options, wait_for=5)
        kept = finished_episodes(killed)
        assert not (killed / "README.md").exists()
        played = []
        original = builder.rollout
        monkeypatch.setattr(builder, "rollout", lambda *args: played.append(args) or original(*args))
        command[command.index("--num-workers") + 1] = "1"
        assert main(command) == 0
        assert len(kept) + len(played) == 25
        undisturbed = build(REACH, tmp_path / "undisturbed", episodes=25, progress=False)
        assert digest(killed) == digest(undisturbed)

    @pytest.mark.slow
    def test_20_kills(self, tmp_path):
        """At random moments, with one or two workers; nothing is lost or doubled, and the result is the same."""
        chance = random.Random(0)
        output = tmp_path / "killed"
        options = ["--tasks", REACH, BALL, "mujoco-reacher", "--episodes", "300", "--num-workers"]
        command = [sys.executable, "-m", "dataset_builder", "build", "--output", str(output), *options]
        for _ in range(20):
            before = finished_episodes(output)
            process = subprocess.Popen(
                [*command, chance.choice("12")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wanted = len(before) + chance.randrange(40)
            deadline = time.monotonic() + chance.uniform(3, 12)
            while len(finished_episodes(output)) < wanted and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert before <= finished_episodes(output)
        subprocess.run([*command, "2"], check=True, capture_output=True)
        undisturbed = build(
            [REACH, BALL, "mujoco-reacher"], tmp_path / "b", episodes=300, num_workers=2, progress=False
        )
        assert digest(output) == digest(undisturbed)

    def test_ctrl_c(self, tmp_path):
        """Workers end at once, with one line that says how to go on."""
        command = [sys.executable, "-m", "dataset_builder", "build", "--tasks", REACH, "--episodes", "100"]
        process = subprocess.Popen(
            [*command, "--num-workers", "2", "--output", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where the tests run in the background, it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        wait_until(lambda: finished_episodes(tmp_path), process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert "run the same command again" in errors
        assert "Traceback" not in errors

    def test_its_workers_end_with_it(self, tmp_path):
        _, workers = self.start(tmp_path, "--tasks", REACH, "--episodes", "50", "--num-workers", "2", wait_for=2)
        assert len(workers) >= 2
        deadline = time.monotonic() + 60
        while not all(has_ended(worker) for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_all_but_the_last_episode_of_a_torn_part_is_read(self, tmp_path):
        task, recipe = get_task(BALL), Recipe(task=BALL, expert="bot")
        finished = builder.play_item(builder.WorkItem(task, recipe, (0, 1, 2), tmp_path, origin(task, recipe)))
        whole = finished.part.read_bytes()
        sizes = set()
        for end in [*range(0, len(whole), 97), len(whole)]:
            finished.part.write_bytes(whole[:end])
            episodes = read_part(finished.part).episodes
            sizes.add(len(episodes))
            assert [record for _, record in episodes] == finished.records[: len(episodes)]
        assert sizes == {0, 1, 2, 3}

    def test_more_episodes_extend_a_build_without_a_change_of_its_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(builder, "EPISODES_PER_SHARD", 4)
        folder = build(BALL, tmp_path / "a", episodes=11, progress=False)
        before = {path.read_bytes() for path in folder.rglob("*.parquet")}
        build(BALL, folder, episodes=25, progress=False)
        after = {path.read_bytes() for path in folder.rglob("*.parquet")}
        assert before < after
        whole = build(BALL, tmp_path / "b", episodes=25, progress=False)
        for split in ("train", "test"):
            rows = [load_dataset(str(path), BALL, split=split).to_list() for path in (folder, whole)]
            assert rows[0] == rows[1]
        assert (
            json.loads((folder / BALL / "manifest.json").read_text())["episodes"]
            == (json.loads((whole / BALL / "manifest.json").read_text())["episodes"])
        )

    def test_readers_see_a_whole_set_of_shards_while_more_are_built(self, tmp_path):
        folder = build(BALL, tmp_path / "a", **FEW)
        shard = next((folder / BALL).glob("train-*"))
        (folder / BALL / "train-from-00000006.parquet").write_bytes(shard.read_bytes())
        assert len(load_dataset(str(folder), BALL, split="train")) == 6

    def test_a_finished_build_is_left_alone(self, tmp_path):
        folder = build(BALL, tmp_path / "a", **FEW)
        times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
        build(BALL, folder, **FEW)
        assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}

    def test_tasks_are_added_to_a_folder(self, tmp_path):
        folder = build(BALL, tmp_path / "a", **FEW)
        build("mujoco-reacher", folder, **FEW)
        assert get_dataset_config_names(str(folder)) == [BALL, "mujoco-reacher"]


@given(
    builds=st.lists(st.integers(1, 60), min_size=1, max_size=4).map(sorted),
    size=st.integers(1, 12),
    chance=st.randoms(use_true_random=False),
)
def test_shards_are_planned_the_same_however_often_a_build_is_killed(builds, size, chance):
    """And every episode is in one of them, whatever was built before."""
    finished = set()
    written = []
    for episodes in builds:
        whole = builder.plan_shards(episodes, finished, size)
        while planned := builder.plan_shards(episodes, finished, size):
            assert set(planned) <= set(whole)
            for split, indices in chance.sample(planned, chance.randint(1, len(planned))):  # until it is killed
                assert {split_of(index) for index in indices} == {split}
                assert len(indices) <= size
                finished |= set(indices)
                written.append(indices)
        assert sorted(index for indices in written for index in indices) == list(range(episodes))


class TestSteps:
    def test_the_fewest_episodes_that_have_them(self, tmp_path):
        folder = build("mujoco-reacher", tmp_path / "a", steps=501, progress=False)
        records = json.loads((folder / "mujoco-reacher" / "manifest.json").read_text())["episodes"]
        assert sum(record["timesteps"] for record in records) == 550

    def test_whatever_the_number_of_workers(self, tmp_path):
        one = build(BALL, tmp_path / "a", steps=150, progress=False)
        two = build(BALL, tmp_path / "b", steps=150, num_workers=2, progress=False)
        assert digest(one) == digest(two)
        records = json.loads((one / BALL / "manifest.json").read_text())["episodes"]
        timesteps = [record["timesteps"] for record in records]
        assert sum(timesteps) >= 150 > sum(timesteps[:-1])

    def test_more_steps_extend_a_build_and_fewer_leave_it(self, tmp_path):
        folder = build(BALL, tmp_path / "a", steps=100, progress=False)
        build(BALL, folder, steps=200, progress=False)
        extended = digest(folder)
        build(BALL, folder, steps=100, progress=False)
        assert digest(folder) == extended


@pytest.fixture(scope="module")
def long_episodes(tmp_path_factory):
    options = {"expert": "random", "episodes": 11, "max_episode_steps": 300, "progress": False}
    return build(PONG, tmp_path_factory.mktemp("long") / "a", **options)


class TestRowsOfLongEpisodes:
    def test_parts_of_an_episode(self, long_episodes):
        dataset = load_dataset(str(long_episodes), PONG, split="train")
        assert dataset["episode_index"][:7] == [0, 0, 0, 1, 1, 1, 2]
        assert dataset["first_timestep"][:6] == [0, 128, 256, 0, 128, 256]
        assert [len(rewards) for rewards in dataset["rewards"][:3]] == [128, 128, 44]

    def test_an_episode_is_one_call(self, long_episodes):
        [(played, _)] = play(Recipe(task=PONG, expert="random", max_episode_steps=300), 10)
        episode = load_episodes(long_episodes, PONG)[9]
        assert np.array_equal(episode["image_observations"], played.observations["image_observation"])
        assert np.array_equal(episode["discrete_actions"], played.actions)
        assert np.array_equal(episode["rewards"], played.rewards)

    def test_stretches_across_rows(self, long_episodes):
        episodes = load_episodes(long_episodes, PONG)
        whole = episodes[1]
        for start, stop in ((0, 300), (100, 140), (127, 129), (128, 256), (130, 131), (255, 300)):
            stretch = episodes.read(1, start, stop)
            for column, values in whole.items():
                assert np.array_equal(stretch[column], values[start:stop])

    def test_row_groups_and_rows_are_small(self, long_episodes):
        for path in long_episodes.rglob("*.parquet"):
            metadata = pyarrow.parquet.read_metadata(path)
            assert all(metadata.row_group(i).total_byte_size < 100e6 for i in range(metadata.num_row_groups))
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1):
                assert batch.nbytes < 5e6

    def test_a_shard_is_several_row_groups(self, tmp_path, monkeypatch):
        monkeypatch.setattr("dataset_builder.shards.ROW_GROUP_BYTES", 20_000)
        folder = build("mujoco-reacher", tmp_path / "a", episodes=30, progress=False)
        shard = next((folder / "mujoco-reacher").glob("train*"))
        assert pyarrow.parquet.read_metadata(shard).num_row_groups > 1
        assert len(load_episodes(folder, "mujoco-reacher")) == 27


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
        options = ("--tasks", "atari-pitfall", "--expert", "network", "--episodes", "2")
        error = self.refused(tmp_path / "a", *options, capsys=capsys)
        assert "atari-pitfall has no weights" in error
        assert "train_expert_atari.py --tasks atari-pitfall" in error

    def test_an_expert_of_another_domain(self, tmp_path, capsys):
        options = ("--tasks", REACH, "--episodes", "2", "--expert", "bot")
        assert "the bot plays BabyAI only, not metaworld-reach" in self.refused(tmp_path / "a", *options, capsys=capsys)

    def test_timesteps_of_a_text_subset(self, tmp_path, capsys):
        assert "text subset" in self.refused(tmp_path / "a", "--tasks", "text", "--steps", "2", capsys=capsys)

    @pytest.mark.parametrize("option", ["--episodes", "--steps", "--num-workers", "--max-episode-steps"])
    def test_numbers_out_of_range(self, tmp_path, capsys, option):
        options = ["--tasks", REACH, *(() if option == "--steps" else ("--episodes", "2")), option, "0"]
        assert "must be at least 1, got 0" in self.refused(tmp_path / "a", *options, capsys=capsys)

    def test_a_folder_with_something_else(self, tmp_path, capsys):
        (tmp_path / "thesis.txt").write_text("...")
        error = self.refused(tmp_path, "--tasks", BALL, "--episodes", "2", capsys=capsys)
        assert "holds something else (thesis.txt)" in error

    def test_a_folder_in_which_another_process_builds(self, tmp_path, capsys):
        with lock_folder(tmp_path / "a"):
            error = self.refused(tmp_path / "a", "--tasks", BALL, "--episodes", "2", capsys=capsys)
        assert "another process builds" in error

    def test_parts_of_another_recipe(self, tmp_path, capsys):
        task, recipe = get_task(BALL), Recipe(task=BALL, expert="bot", seed=1)
        parts = tmp_path / "a" / ".parts" / BALL
        parts.mkdir(parents=True)
        builder.play_item(builder.WorkItem(task, recipe, (0,), parts, origin(task, recipe)))
        assert "another recipe" in self.refused(tmp_path / "a", "--tasks", BALL, "--episodes", "2", capsys=capsys)

    def test_other_versions(self, tmp_path, capsys, monkeypatch):
        folder = build(BALL, tmp_path / "a", **FEW)
        monkeypatch.setattr(shards, "package_version", lambda name: "99" if name == "minigrid" else version(name))
        error = self.refused(folder, "--tasks", BALL, "--episodes", "6", capsys=capsys)
        assert "minigrid 3" in error
        assert "now 99" in error

    def test_an_unknown_executor(self, tmp_path):
        with pytest.raises(ValueError, match="unknown executor 'slurm': expected one of local, ray"):
            build(BALL, tmp_path / "a", episodes=2, executor="slurm")

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
    assert manifest["recipe"] == {
        "task": BALL,
        "expert": "bot",
        "seed": 0,
        "max_episode_steps": None,
        "action_noise": 0.0,
    }
    assert [record["index"] for record in manifest["episodes"]] == list(range(12))
    assert all(record["success"] for record in manifest["episodes"])
    card = (data_folder / "README.md").read_text()
    assert "| babyai-go-to-red-ball-no-dists | go to the red ball, the only object | bot | 12 |" in card
    assert "\npython -m dataset_builder build --tasks atari-pong --episodes 12 --seed 0 --expert random" in card
    assert "--max-episode-steps 20" in card
    assert "| image_observations | list of image |" in card
    assert "atari, " not in card
    for picture in ("returns", "atari", "babyai"):
        assert f"![assets/{picture}.png](assets/{picture}.png)" in card
        assert PIL.Image.open(data_folder / "assets" / f"{picture}.png").size[0] > 100


def test_dropped_starts_are_counted_with_their_reasons(tmp_path):
    """With this seed the first start of episode 0 cannot be solved; another one takes its place."""
    folder = build("babyai-unlock", tmp_path, episodes=2, seed=3, progress=False)
    manifest = json.loads((folder / "babyai-unlock" / "manifest.json").read_text())
    [dropped] = manifest["episodes"][0]["dropped_starts"]
    assert dropped["reason"] == "the bot has explored all that it can reach"
    assert manifest["dropped_starts"] == 1
    assert manifest["success_rate"] == 1


def test_a_shard_describes_itself(data_folder):
    footer = read_footer(data_folder / REACH / "test-00000-of-00001.parquet")
    assert footer["recipe"] == {
        "task": REACH,
        "expert": "scripted",
        "seed": 0,
        "max_episode_steps": None,
        "action_noise": 0.0,
    }
    assert footer["versions"]["metaworld"] == version("metaworld")
    assert [record["index"] for record in footer["episodes"]] == [9]


def test_the_builder_of_datasets(tmp_path):
    """The same rows through `datasets`' own builder interface."""
    interface = JatDataset(config_name=BALL, episodes=12, cache_dir=str(tmp_path / "cache"))
    interface.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    folder = build(BALL, tmp_path / "built", episodes=12, progress=False)
    rows = load_dataset("parquet", data_files=str(tmp_path / "out" / "*train*.parquet"), split="train")
    assert rows.to_list() == load_dataset(str(folder), BALL, split="train").to_list()


def test_161_configurations():
    configurations = {config.name: JatDataset(config_name=config.name) for config in JatDataset.BUILDER_CONFIGS}
    assert list(configurations) == [task.name for task in select_tasks(["all", "text"])]
    assert len(configurations) == 161
    for name, configuration in configurations.items():
        assert configuration.info.features == task_features(get_task(name))


def test_list(capsys):
    assert main(["list", "--tasks", "mujoco", "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert any(line.startswith("mujoco-hopper") and "network" in line for line in lines)


def test_list_piped_into_a_reader_that_has_seen_enough():
    command = [sys.executable, "-m", "dataset_builder", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
