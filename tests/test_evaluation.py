import json

import numpy as np
import pytest

from dataset_builder import load_expert
from dataset_builder.__main__ import main
from dataset_builder.evaluation import AgentPolicy, TaskScore, evaluate, format_table, score_rows, write_scores
from dataset_builder.scores import read_expert_scores, reference_scores


def evaluate_agent(make_model, processor, task, num_envs, **kwargs):
    agent = AgentPolicy(make_model(), processor, deterministic=True)
    return evaluate(agent, task, num_envs=num_envs, progress=False, **kwargs)


@pytest.mark.parametrize("task", ["mujoco-reacher", "babyai-go-to-red-ball-no-dists", "atari-pong"])
def test_several_environments_at_once_give_the_same_episodes(make_model, processor, task):
    """Episodes of different lengths, begun anew row by row."""
    options = {"episodes": 5, "max_episode_steps": 40 if task != "atari-pong" else 6}
    one = evaluate_agent(make_model, processor, task, 1, **options)
    three = evaluate_agent(make_model, processor, task, 3, **options)
    assert one.timesteps == three.timesteps
    np.testing.assert_allclose(one.returns, three.returns, rtol=1e-4)


def test_a_random_score_is_the_published_one():
    score = evaluate(load_expert("mujoco-reacher", "random"), "mujoco-reacher", episodes=100, progress=False)
    assert abs(score.mean - reference_scores("mujoco-reacher").random) < 4 * score.standard_error
    assert abs(score.normalized) < 0.1


def test_metaworld_is_scored_over_100_timesteps_and_succeeds_within_500():
    score = evaluate(load_expert("metaworld-reach"), "metaworld-reach", episodes=2, progress=False)
    assert score.timesteps == (500, 500)
    assert all(a < b for a, b in zip(score.scores, score.returns, strict=True))
    assert score.success_rate == 1.0


def test_starts_that_the_expert_gives_up_are_not_scored():
    score = evaluate(load_expert("babyai-unlock"), "babyai-unlock", episodes=5, progress=False)
    assert len(score.scores) == 4  # the door of the last start keeps its own key


def test_reference_scores():
    hopper = reference_scores("mujoco-hopper")
    assert (hopper.expert, hopper.random, hopper.human, hopper.jat) == (1858.73, 18.3802, None, 1435.45)
    assert hopper.normalized(hopper.random) == 0
    assert hopper.normalized(hopper.expert) == 1
    assert reference_scores("my-own-task").normalized(3.0) is None


def test_an_expert_that_is_no_better_than_random_normalizes_nothing():
    assert reference_scores("metaworld-disassemble").normalized(42.0) is None
    assert reference_scores("atari-bowling").normalized(20.0) is None


def test_table_and_json(tmp_path):
    scores = [
        TaskScore("mujoco-hopper", (1858.73, 1858.73), (1858.73, 1858.73), (), (1000, 1000), seed=0),
        TaskScore("metaworld-reach", (681.37,), (3000.0,), (True,), (500,), seed=0),
    ]
    lines = format_table(score_rows(scores)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "mujoco-hopper", "2", "1858.73 ± 0.00", "-", "18.38", "1858.73", "1.00",
    ]  # fmt: skip
    write_scores(scores, tmp_path / "evaluation.json", policy="test")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["policy"] == "test"
    assert record["tasks"][1]["success_rate"] == 1.0
    assert record["tasks"][0]["published"]["jat"] == 1435.45


def test_experts_are_measured_once(tmp_path, capsys):
    """`score` keeps what it measured, and goes on with what is missing."""
    path = tmp_path / "scores.csv"
    ball, reacher = "babyai-go-to-red-ball-no-dists", "mujoco-reacher"
    command = ["score", "--episodes", "3", "--output", str(path), "--tasks"]
    assert main([*command, ball]) == 0
    first = path.read_text()
    assert main([*command, ball, reacher]) == 0
    assert set(first.splitlines()) < set(path.read_text().splitlines())
    scores = read_expert_scores(path)
    assert scores[ball, "bot"].success == 1
    assert scores[reacher, "network"].success is None
    assert scores[reacher, "network"].return_mean == pytest.approx(
        evaluate(load_expert(reacher), reacher, episodes=3, progress=False).mean, abs=1e-3
    )
    assert "success 1.00" in capsys.readouterr().out


def test_the_measured_experts():
    """Of every task that has an expert without a planner, over 100 episodes."""
    scores = read_expert_scores()
    assert {score.episodes + score.dropped_starts for score in scores.values()} == {100}
    assert len([task for task, _ in scores if task.startswith("babyai")]) == 39
    assert len([task for task, _ in scores if task.startswith("metaworld")]) == 50
