"""What `verify` finds: every kind of damage, by file and row."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import TASKS
from datasets import Dataset, load_dataset

from dataset_builder import get_task, load_expert, scores
from dataset_builder.__main__ import main
from dataset_builder.builder import build
from dataset_builder.episodes import row_schema
from dataset_builder.shards import read_footer, write_shard
from dataset_builder.verify import verify

REACH, BALL, PENDULUM, PONG = TASKS
REACHER = "mujoco-reacher"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "data"
    build([BALL, REACHER], folder, episodes=12, progress=False)
    options = {"expert": "random", "episodes": 3, "max_episode_steps": 300, "progress": False}
    return build(PONG, folder, **options)


@pytest.fixture
def folder(built, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(built, tmp_path / "data")


def faults(folder, task, **options):
    [verdict] = verify(folder, task, progress=False, **options)
    return verdict.faults


def shard(folder, task, split="train"):
    [path] = (folder / task).glob(f"{split}-*")
    return path


def rewrite(path, task, change):
    """Write a shard anew with changed rows, as someone would who is careful with everything else."""
    footer = read_footer(path)
    rows = pyarrow.parquet.read_table(path).to_pylist()
    change(rows)
    schema = row_schema(get_task(task))
    write_shard(path, schema, [pa.RecordBatch.from_pylist(rows, schema=schema)], footer)


def test_nothing_is_wrong(built, capsys):
    assert main(["verify", str(built), "--num-workers", "2"]) == 0
    output = capsys.readouterr().out
    assert "3 tasks verified: 0 faults" in output
    assert "12 episodes, 600 timesteps, 3 played again, 0 faults" in output


def test_data_of_the_four_domains(data_folder):
    assert [verdict.faults for verdict in verify(data_folder, progress=False)] == [[]] * 4


def test_every_episode_can_be_played_again(built):
    verdicts = verify(built, replays=12, progress=False)
    assert [verdict.replayed for verdict in verdicts] == [3, 12, 12]
    assert not any(verdict.faults for verdict in verdicts)


def test_a_flipped_byte(folder, capsys):
    path = shard(folder, REACHER)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(folder), "--tasks", REACHER]) == 1
    assert f"fault: {path}, rows 0 to 10: damaged" in capsys.readouterr().out


def test_a_truncated_file(folder):
    path = shard(folder, REACHER)
    path.write_bytes(path.read_bytes()[:-50])
    damaged, missing = faults(folder, REACHER)
    assert f"{path} is not a Parquet file, or a damaged one" in damaged
    assert "11 episodes of its manifest are missing, such as 0" in missing


def test_a_missing_file(folder):
    shard(folder, REACHER, "test").unlink()
    missing, episodes = faults(folder, REACHER)
    assert missing.endswith("test-00000-of-00001.parquet is missing")
    assert "1 episodes of its manifest are missing, such as 9" in episodes


@pytest.mark.parametrize("name", ["notes.txt", "train-00001-of-00002.parquet"])
def test_a_foreign_file(folder, name):
    path = folder / REACHER / name
    Dataset.from_dict({"a": [1]}).to_parquet(path)
    [fault] = faults(folder, REACHER)
    assert str(path) in fault
    assert "foreign" in fault or "not written by this builder" in fault


def test_a_shard_of_another_recipe(folder, tmp_path):
    other = build(REACHER, tmp_path / "other", episodes=12, seed=1, progress=False)
    shutil.copy(shard(other, REACHER), shard(folder, REACHER))
    assert any("is mixed in: it was built by" in fault for fault in faults(folder, REACHER))


def test_a_shard_of_other_versions(folder):
    path = shard(folder, REACHER, "test")
    footer = read_footer(path)
    footer["versions"]["mujoco"] = "2.3.7"
    write_shard(path, row_schema(get_task(REACHER)), pyarrow.parquet.read_table(path).to_batches(), footer)
    [fault] = faults(folder, REACHER)
    assert f"{path} is mixed in: it was built with mujoco 2.3.7" in fault


def test_a_doubled_shard(folder):
    path = shard(folder, REACHER)
    shutil.copy(path, path.with_name("train-00001-of-00002.parquet"))
    found = faults(folder, REACHER)
    assert any("shards of several builds" in fault for fault in found)
    assert sum("is also at" in fault for fault in found) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[4]["rewards"].__setitem__(7, 1.5), "its record says return"),
        (lambda rows: rows[4]["rewards"].__setitem__(7, float("nan")), "not finite at timestep 7"),
        (lambda rows: rows[4]["rewards"].pop(), "differ in length"),
        (lambda rows: rows[4]["continuous_actions"].__setitem__(7, [3.0, 0.0]), "at timestep 7"),
        (lambda rows: rows[4]["continuous_actions"].__setitem__(7, [0.0]), "a column is ragged"),
        (lambda rows: rows[4].__setitem__("rewards", None), "a column is ragged or lacks values"),
        (lambda rows: [row.pop() for row in rows[4]["continuous_observations"]], "of shape (10,) a timestep"),
    ],
)
def test_a_changed_row(folder, change, message):
    path = shard(folder, REACHER)
    rewrite(path, REACHER, change)
    found = faults(folder, REACHER)
    assert any(fault.startswith(f"{path}, row 4") and message in fault for fault in found), found
    assert not any(", row 5" in fault for fault in found)


@pytest.mark.parametrize("column", ["continuous_observations", "continuous_actions"])
def test_values_that_only_playing_again_tells(folder, column):
    path = shard(folder, REACHER)

    def change(rows):
        rows[2][column][30][0] = float(np.nextafter(np.float32(rows[2][column][30][0]), np.float32(0)))

    rewrite(path, REACHER, change)
    [fault] = faults(folder, REACHER, replays=12)
    assert fault.startswith(f"{path}, row 2 (episode 2): played again")
    assert "timestep 3" in fault


def test_a_mission_of_another_episode(folder):
    path = shard(folder, BALL)
    rewrite(path, BALL, lambda rows: rows[3]["discrete_observations"][0].__setitem__(0, 99))
    [fault] = faults(folder, BALL)
    assert fault.startswith(f"{path}, row 3")
    assert "discrete_observations leaves" in fault


def test_rows_of_a_long_episode_out_of_place(folder):
    path = shard(folder, PONG)

    def swap(rows):
        rows[1], rows[2] = rows[2], rows[1]

    rewrite(path, PONG, swap)
    found = faults(folder, PONG)
    assert f"{path}, row 1: timestep 256 of episode 0 is out of place" in found
    assert not any("episode 1" in fault for fault in found)


def test_a_manifest_that_says_something_else(folder):
    path = folder / REACHER / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["episodes"][0]["return"] = 0.0
    path.write_text(json.dumps(manifest))
    [fault] = faults(folder, REACHER)
    assert f"{path} says of episode 0 other than" in fault


def test_a_damaged_manifest(folder):
    (folder / REACHER / "manifest.json").write_text("{")
    [fault] = faults(folder, REACHER)
    assert "manifest.json cannot be read" in fault


@pytest.mark.parametrize(("mean", "wrong"), [(-4.0, False), (0.5, True)])
def test_returns_are_those_of_the_expert(folder, monkeypatch, mean, wrong):
    measured = scores.read_scores()[REACHER, "network"]
    measured = dataclasses.replace(measured, return_mean=mean, return_std=0.5)
    monkeypatch.setattr("dataset_builder.verify.read_scores", lambda: {(REACHER, "network"): measured})
    found = faults(folder, REACHER)
    assert bool(found) == wrong
    assert not wrong or "was measured to reach 0.50 ± 0.50" in found[0]


def test_no_such_task(built, capsys):
    assert main(["verify", str(built), "--tasks", "metaworld"]) == 2
    assert "no finished data of 'metaworld'" in capsys.readouterr().err


def test_data_with_action_noise(tmp_path):
    options = {"episodes": 8, "action_noise": 0.3, "progress": False}
    folder = build(REACHER, tmp_path, **options)
    [verdict] = verify(folder, replays=8, progress=False)
    assert (verdict.replayed, verdict.faults) == (8, [])
    # What is stored is what the expert meant, also where something else was executed.
    expert = load_expert(REACHER)
    for row in load_dataset(str(folder), REACHER, split="train"):
        for observation, action in zip(row["continuous_observations"], row["continuous_actions"], strict=True):
            meant = expert.act({"continuous_observation": np.array(observation, np.float32)}, None)
            assert np.allclose(np.clip(meant, -1, 1), action, atol=1e-6)
    assert "--action-noise 0.3" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="was built by"):
        build(REACHER, tmp_path, **{**options, "action_noise": 0.2})
