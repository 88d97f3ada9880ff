"""Data in which a student acts and the expert says what it would have done."""

import json
from contextlib import suppress

import numpy as np
import pytest
from datasets import load_dataset

from dataset_builder import get_task, load_expert, make_env, rollout
from dataset_builder.builder import build
from dataset_builder.evaluation import ExpertPlayer
from dataset_builder.rollout import ExpertGaveUp
from dataset_builder.students import StudentActs
from dataset_builder.verify import verify

REACHER = "mujoco-reacher"
RANDOM = ExpertPlayer("random")


def test_a_student_acts_in_a_share_of_every_episode():
    env = StudentActs(make_env(REACHER), RANDOM.load(get_task(REACHER)))

    def share(seed):
        env.reset(seed=seed)
        executed = []
        for _ in range(50):
            env.step(np.zeros(2, np.float32))
            executed.append(env.executed)
        return np.mean(np.any(executed, axis=1))

    shares = [share(seed) for seed in range(20)]
    assert min(shares) < 0.25 < 0.75 < max(shares)
    assert shares[:3] == [share(seed) for seed in range(3)]


def test_the_expert_says_what_it_would_have_done(tmp_path):
    options = {"episodes": 8, "student": RANDOM, "progress": False}
    folder = build(REACHER, tmp_path / "data", **options)
    expert, returns = load_expert(REACHER), []
    for row in load_dataset(str(folder), REACHER, split="train"):
        returns.append(sum(row["rewards"]))
        for observation, action in zip(row["continuous_observations"], row["continuous_actions"], strict=True):
            meant = expert.act({"continuous_observation": np.array(observation, np.float32)}, None)
            assert np.allclose(np.clip(meant, -1, 1), action, atol=1e-6)
    assert min(returns) < -15  # -43 for random actions, -3 for the expert

    again = build(REACHER, tmp_path / "again", **options)
    for path in (folder / REACHER).iterdir():
        assert path.read_bytes() == (again / REACHER / path.name).read_bytes()
    with pytest.raises(ValueError, match=r"has .*'student': {'policy': 'random'}.*: choose another folder"):
        build(REACHER, folder, **{**options, "student": None})


def test_what_data_with_a_student_say_of_themselves(tmp_path):
    folder = build(REACHER, tmp_path, episodes=2, student=RANDOM, progress=False)
    manifest = json.loads((folder / REACHER / "manifest.json").read_text())
    assert manifest["recipe"]["student"] == {"policy": "random"}
    [verdict] = verify(folder, progress=False)
    assert (verdict.episodes, verdict.replayed, verdict.faults) == (2, 0, [])
    assert "cannot be played again without the student in them" in verdict.notes[0]
    card = (folder / "README.md").read_text()
    assert "(but in mujoco-reacher: there an agent acted in the expert's place" in card
    assert "python examples/dagger.py --model STUDENT --tasks mujoco-reacher --episodes 2 --seed 0" in card


@pytest.mark.parametrize("task", ["babyai-unblock-pickup", "babyai-open-two-doors", "babyai-put-next-local"])
def test_the_bot_goes_on_from_what_a_student_did(task):
    """Objects that were picked up or dropped, doors that were opened, circles that are not the bot's own."""
    env, bot = StudentActs(make_env(task), RANDOM.load(get_task(task))), load_expert(task)
    returns = {}
    for seed in range(20):
        with suppress(ExpertGaveUp):  # the student opened a box, which is gone then
            episode = rollout(env, bot, seed)
            returns[env.share] = episode.total_reward
    assert len(returns) > 12
    assert all(earned > 0 for share, earned in returns.items() if share < 0.7)
