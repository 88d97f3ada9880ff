import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset_builder
from dataset_builder import get_task, load_expert, select_tasks
from dataset_builder.__main__ import main
from dataset_builder.evaluation import (
    AgentPolicy,
    ExpertPlayer,
    Trial,
    evaluate,
    read_log,
    run_trials,
)
from dataset_builder.measuring import write_page
from dataset_builder.scores import expert_yardstick, human_yardstick, read_scores, reference_scores, summarize_tasks
from dataset_builder.shards import lock_folder


def lengths(score):
    return [episode.timesteps for episode in score.episodes]


def evaluate_agent(make_model, processor, task, num_envs, **kwargs):
    agent = AgentPolicy(make_model(), processor, deterministic=True)
    return evaluate(agent, task, num_envs=num_envs, progress=False, **kwargs)


@pytest.mark.parametrize("task", ["mujoco-reacher", "babyai-go-to-red-ball-no-dists", "atari-pong"])
def test_several_environments_at_once_give_the_same_episodes(make_model, processor, task):
    """Episodes of different lengths, begun anew row by row."""
    options = {"episodes": 5, "max_episode_steps": 40 if task != "atari-pong" else 6}
    one = evaluate_agent(make_model, processor, task, 1, **options)
    three = evaluate_agent(make_model, processor, task, 3, **options)
    assert lengths(one) == lengths(three)
    np.testing.assert_allclose(one.scores, three.scores, rtol=1e-4)


def test_a_random_score_is_the_published_one():
    score = evaluate(load_expert("mujoco-reacher", "random"), "mujoco-reacher", episodes=100, progress=False)
    assert abs(score.mean - reference_scores("mujoco-reacher").random) < 4 * score.standard_error
    assert abs(expert_yardstick("mujoco-reacher").normalized(score.mean)) < 0.1


def test_metaworld_is_scored_over_100_timesteps_and_succeeds_within_500():
    score = evaluate(load_expert("metaworld-reach"), "metaworld-reach", episodes=2, progress=False)
    assert lengths(score) == [500, 500]
    assert all(episode.score < episode.total_reward for episode in score.episodes)
    assert score.success_rate == 1.0


def test_starts_that_the_expert_gives_up_are_not_scored():
    score = evaluate(load_expert("babyai-unlock"), "babyai-unlock", episodes=5, progress=False)
    assert (len(score.episodes), score.dropped_starts) == (4, 1)  # the door of the last start keeps its own key


def test_reference_scores():
    hopper = reference_scores("mujoco-hopper")
    assert (hopper.expert, hopper.random, hopper.human, hopper.jat) == (1858.73, 18.3802, None, 1435.45)
    yardstick = expert_yardstick("mujoco-hopper")
    assert yardstick.normalized(hopper.random) == 0
    assert yardstick.normalized(hopper.expert) == 1


BALL, REACHER = "babyai-go-to-red-ball-no-dists", "mujoco-reacher"


def measure(path, *options):
    assert main(["score", "--episodes", "3", "--output", str(path), *options]) == 0
    return read_scores(path)


def test_random_and_experts_are_measured_once(tmp_path, capsys):
    path = tmp_path / "scores.json"
    measure(path, "--tasks", BALL)
    first = set(path.read_text().replace("}\n", "},\n").splitlines())
    scores = measure(path, "--tasks", BALL, REACHER)
    assert first < set(path.read_text().replace("}\n", "},\n").splitlines())  # also the speed: it was not played again
    assert set(scores) == {(BALL, "bot"), (BALL, "random"), (REACHER, "network"), (REACHER, "random")}
    expert, random = scores[REACHER, "network"], scores[REACHER, "random"]
    again = evaluate(load_expert(REACHER), REACHER, episodes=3, progress=False)
    assert (expert.score_mean, expert.standard_error) == pytest.approx((again.mean, again.standard_error), abs=1e-3)
    assert (expert.episodes, expert.success, expert.timesteps) == (3, None, 50)
    assert random.score_mean < expert.score_mean
    assert (scores[BALL, "bot"].success, scores[BALL, "bot"].cut) == (1, 0)
    assert expert.versions["mujoco"]
    output = capsys.readouterr().out
    assert "| mujoco-reacher " in output
    assert "babyai: 1 of 1 reach the published expert (*), 1 within 2 standard errors" in output
    measure(path, "--tasks", BALL, "--again", "--page", str(tmp_path / "SCORES.md"))
    assert set(path.read_text().splitlines()) != first
    rows = re.findall(r"^\| (babyai\S+|mujoco\S+) ", (tmp_path / "SCORES.md").read_text(), re.MULTILINE)
    assert rows == [BALL, REACHER]


def test_a_measurement_goes_on(tmp_path):
    """A killed one keeps every finished episode, also while others are measured."""
    path = tmp_path / "scores.json"
    command = [sys.executable, "-m", "dataset_builder", "score", "--episodes", "40", "--output", str(path), "--tasks"]
    process = subprocess.Popen([*command, REACHER], stderr=subprocess.DEVNULL)
    unfinished = tmp_path / "scores.unfinished.jsonl"
    wait_until(lambda: unfinished.exists() and len(unfinished.read_text().splitlines()) >= 10, process)
    process.kill()
    process.wait()
    kept = unfinished.read_text().splitlines()
    measure(path, "--tasks", BALL)
    assert unfinished.read_text().splitlines()[:10] == kept[:10]
    result = subprocess.run([*command, REACHER], capture_output=True, text=True, check=True)
    total = int(re.findall(r"\d+/(\d+)", result.stderr)[-1])
    assert 80 - len(kept) <= total <= 80 - len(kept) + 1  # one may have been cut off within its line
    assert unfinished.read_text() == ""
    expected = evaluate(load_expert(REACHER), REACHER, episodes=40, progress=False)
    assert read_scores(path)[REACHER, "network"].score_mean == pytest.approx(expected.mean, abs=1e-3)


def test_two_measurements_do_not_write_to_one_file(tmp_path, capsys):
    with lock_folder(tmp_path):
        assert main(["score", "--tasks", BALL, "--episodes", "3", "--output", str(tmp_path / "scores.json")]) == 2
    assert "another process builds or measures" in capsys.readouterr().err
    assert not (tmp_path / "scores.json").exists()


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"task": "mujoco-rea')
    trial = Trial(get_task(REACHER), ExpertPlayer("random"), episodes=2)
    [_] = run_trials([trial], log, progress=False)
    assert [episode.index for _, episode in read_log(log)] == [0, 1]


def test_evaluations_that_share_a_log_keep_their_episodes(tmp_path):
    log = tmp_path / "log.jsonl"
    first, second, other = (
        Trial(get_task(task), ExpertPlayer("random"), episodes=1) for task in (BALL, REACHER, "mujoco-swimmer")
    )
    played = run_trials([first, second], log, progress=False)
    next(played)
    [_] = run_trials([other], log, progress=False)
    [_] = played
    assert {described["task"] for described, _ in read_log(log)} == {BALL, REACHER, "mujoco-swimmer"}


def test_the_measured_scores():
    """The expert of every task that has one without a planner, over 100 episodes."""
    scores = read_scores()
    for domain in ("babyai", "metaworld"):
        for task in select_tasks(domain):
            score = scores[task.name, task.expert]
            assert score.episodes + score.dropped_starts == 100
    metaworld = [scores[task.name, "scripted"].success for task in select_tasks("metaworld")]
    assert min(metaworld) >= 0.95
    assert np.mean(metaworld) >= 0.99
    assert all(scores[task.name, "bot"].success == 1 for task in select_tasks("babyai"))
    networks = [scores[task.name, "network"] for task in select_tasks("atari") if task.expert == "network"]
    towards_human = []
    for score in networks:
        assert score.episodes == 100
        assert score.score_mean - reference_scores(score.task).random > 3 * score.standard_error
        towards_human.append(human_yardstick(score.task).normalized(score.score_mean))
    assert sum(share >= 0.5 for share in towards_human) >= 13
    assert sum(share >= 1 for share in towards_human) >= 9


def test_the_page_of_scores_is_that_of_the_file(tmp_path):
    write_page(list(read_scores().values()), tmp_path / "SCORES.md")
    assert (tmp_path / "SCORES.md").read_text() == (Path(dataset_builder.__file__).parent / "SCORES.md").read_text()


def test_where_the_published_expert_is_no_better_than_random_ours_is_the_measure():
    published = expert_yardstick("metaworld-reach")
    assert (published.normalized(reference_scores("metaworld-reach").expert), published.name) == (1.0, "published")
    ours = read_scores()["metaworld-disassemble", "tuned"]
    yardstick = expert_yardstick("metaworld-disassemble")
    assert (yardstick.normalized(ours.score_mean), yardstick.name) == (1.0, "our tuned")
    assert expert_yardstick("my-own-task") is None
    assert human_yardstick("metaworld-reach") is None
    assert human_yardstick("atari-pong").normalized(14.6) == 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-2, 3), min_size=1, max_size=8), min_size=1, max_size=5))
def test_statistics_of_several_tasks(scores):
    found = summarize_tasks(scores, resamples=50)
    means = [np.mean(task) for task in scores]
    assert found["mean"].value == pytest.approx(np.mean(means))
    assert found["median"].value == pytest.approx(np.median(means))
    lowest, highest = np.min(np.concatenate(scores)), np.max(np.concatenate(scores))
    for statistic in found.values():
        assert lowest - 1e-9 <= statistic.low <= statistic.high <= highest + 1e-9
    assert summarize_tasks(scores, resamples=50) == found


def test_the_interquartile_mean_is_that_of_the_middle_half():
    found = summarize_tasks([[0.0, 0.2, 0.4, 100.0], [-50.0, 0.2, 0.4, 0.6]], resamples=1000)["interquartile mean"]
    assert found.value == pytest.approx(0.3)
    assert found.low < 0.3 < found.high


def test_the_interval_holds_the_true_mean_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = summarize_tasks(rng.normal([[0.2], [0.5], [0.8]], 0.3, (3, 50)), resamples=200)["mean"]
        held += found.low <= 0.5 <= found.high
    assert 180 <= held <= 198
