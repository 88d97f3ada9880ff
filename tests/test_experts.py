import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from threadpoolctl import threadpool_info

from dataset_builder import MissingExpertError, get_task, load_expert, make_env, rollout, select_tasks
from dataset_builder.evaluation import evaluate
from dataset_builder.experts.explorer import ExplorerPolicy
from dataset_builder.experts.network import WEIGHTS, Network, weights_path
from dataset_builder.rollout import ExpertGaveUp, episode_seed
from dataset_builder.scores import reference_scores

TRAINED = [task.name for task in select_tasks("mujoco")]
HUMANOIDS = ("mujoco-humanoid", "mujoco-standup")


def scores(task, episodes, **kwargs):
    return evaluate(load_expert(task), task, episodes=episodes, progress=False, **kwargs)


@pytest.mark.parametrize(
    "task", ["babyai-go-to-red-ball", "babyai-put-next", "babyai-synth-seq", "babyai-unlock-pickup"]
)
def test_the_bot_succeeds(task):
    score = scores(task, 5)
    assert score.success_rate == 1.0
    assert score.mean > reference_scores(task).random


@pytest.mark.slow
@pytest.mark.parametrize("task", select_tasks("babyai"), ids=lambda task: task.name)
def test_the_bot_succeeds_on_all(task):
    score = scores(task, 20)
    assert score.success_rate == 1.0
    reference = reference_scores(task.name)
    assert score.mean > (reference.random + reference.expert) / 2


@pytest.mark.parametrize("task", ["babyai-unlock-to-unlock", "babyai-mini-boss-level"])
def test_the_bot_succeeds_where_minigrids_own_goes_in_circles(task):
    env = make_env(task)
    indices = {"babyai-unlock-to-unlock": range(8), "babyai-mini-boss-level": (50, 110, 160)}[task]
    for index in indices:
        assert rollout(env, load_expert(task), episode_seed(task, index, 0, purpose="evaluate")).success


def is_solvable(env):
    """Whether every key can be reached: without going through walls, or through doors whose key was not reached."""
    grid, reached, keys = env.unwrapped.grid, set(), set()
    frontier = {tuple(int(i) for i in env.unwrapped.agent_pos)}
    locked = set()
    while frontier:
        position = frontier.pop()
        cell = grid.get(*position)
        if cell is not None and cell.type == "wall":
            continue
        if cell is not None and cell.type == "door" and cell.is_locked and cell.color not in keys:
            locked.add(position)
            continue
        reached.add(position)
        if cell is not None and cell.type == "key" and cell.color not in keys:
            keys.add(cell.color)
            frontier |= locked
            locked = set()
        x, y = position
        frontier |= {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} - reached
    return not locked


def outcomes(task, indices):
    """Of every start, the length of its episode, or None if the bot gave it up, and whether it can be solved."""
    env = make_env(task)
    for index in indices:
        seed = episode_seed(task, index, 0, purpose="evaluate")
        env.reset(seed=seed)
        solvable = is_solvable(env)
        try:
            episode = rollout(env, load_expert(task), seed)
        except ExpertGaveUp:
            yield None, solvable
        else:
            assert episode.success
            yield len(episode), solvable


def test_the_bot_gives_up_the_same_starts_everywhere_and_only_those_that_nobody_can_solve():
    first = list(outcomes("babyai-unlock", range(2, 6)))
    assert (None, False) in first
    assert any(length for length, _ in first)
    assert list(outcomes("babyai-unlock", range(2, 6))) == first


@pytest.mark.slow
@pytest.mark.parametrize("task", select_tasks("babyai"), ids=lambda task: task.name)
def test_starts_that_the_bot_gives_up_cannot_be_solved(task):
    given_up = [solvable for length, solvable in outcomes(task.name, range(200)) if length is None]
    assert not any(given_up)
    if task.name not in ("babyai-unlock", "babyai-go-to-imp-unlock"):
        assert not given_up


@pytest.mark.parametrize("task", ["metaworld-reach", "metaworld-drawer-open", "metaworld-assembly"])
def test_scripts_succeed(task):
    assert scores(task, 3).success_rate == 1.0


@pytest.mark.parametrize(
    ("task", "index"),
    [
        ("peg-insert-side", 1),
        ("sweep-into", 2),
        ("box-close", 4),
        ("stick-pull", 29),
        ("shelf-place", 7),
        ("soccer", 41),
    ],
)
def test_repaired_scripts_succeed_where_metaworlds_own_fail(task, index):
    task = f"metaworld-{task}"
    episode = rollout(make_env(task), load_expert(task), episode_seed(task, index, 0, purpose="evaluate"))
    assert episode.success


@pytest.mark.slow
@pytest.mark.parametrize("task", select_tasks("metaworld"), ids=lambda task: task.name)
def test_scripts_succeed_on_all(task):
    assert scores(task, 20).success_rate >= 0.9


@pytest.mark.parametrize("task", ["metaworld-assembly", "metaworld-disassemble", "metaworld-stick-push"])
def test_tuned_scripts_earn_more(task):
    env = make_env(task, max_episode_steps=100)

    def earned(kind):
        return np.mean([rollout(env, load_expert(task, kind), seed).total_reward for seed in range(5)])

    assert earned("tuned") > 1.1 * earned("scripted")


def test_every_script_is_tuned_and_others_cannot_be():
    assert all(load_expert(task, "tuned") for task in select_tasks("metaworld"))
    with pytest.raises(MissingExpertError, match="mujoco-ant has no tuned script: tune one with `python"):
        load_expert("mujoco-ant", "tuned")


@pytest.mark.slow
def test_tuning_finds_more_than_the_script_earns(tmp_path):
    tune, output = Path(__file__).parent.parent / "examples/tune_scripts.py", tmp_path / "tuned.json"
    options = ["--tasks", "metaworld-drawer-open", "--output", str(output)]
    result = subprocess.run([sys.executable, str(tune), *options], capture_output=True, text=True, check=True)
    script, tuned = map(float, re.findall(r"\d+\.\d+", result.stdout))
    assert tuned > 1.2 * script
    [found] = json.loads(output.read_text()).values()
    assert max(found["gains"]) > 1.5


def test_model_predictive_control_leaves_the_simulator_as_it_was():
    """Doing what was planned brings the same states and rewards as doing it without planning."""
    env, policy = make_env("metaworld-assembly", max_episode_steps=40), load_expert("metaworld-assembly", "mpc")
    planned = rollout(env, policy, seed=3)
    env.reset(seed=3)
    for t, action in enumerate(planned.actions):
        observation, reward, *_ = env.step(action)
        assert np.float32(reward) == planned.rewards[t]
        if t + 1 < len(planned):
            assert np.array_equal(
                observation["continuous_observation"], planned.observations["continuous_observation"][t + 1]
            )
    assert np.array_equal(rollout(env, policy, seed=3).actions, planned.actions)


def test_model_predictive_control_earns_more_than_its_script():
    env = make_env("metaworld-coffee-button", max_episode_steps=60)
    script, control = (rollout(env, load_expert(env.task, name), seed=0).total_reward for name in ("scripted", "mpc"))
    assert control > 2 * script


def test_model_predictive_control_plans_no_further_than_the_episode():
    env, policy = make_env("metaworld-reach"), load_expert("metaworld-reach", "mpc")
    policy.horizon, policy.candidates = 30, 2
    assert len(rollout(env, policy, seed=0, keep_observations=False)) == 500


def test_predictive_sampling_sits_up_and_does_the_same_again():
    env, policy = make_env("mujoco-standup", max_episode_steps=40), load_expert("mujoco-standup", "mpc")
    first, again = (rollout(env, policy, seed=0) for _ in range(2))
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.rewards, again.rewards)
    assert first.observations["continuous_observation"][-1][0] > 0.4  # height of the torso; 0.1 lying


@pytest.mark.slow
def test_predictive_sampling_stands():
    heights = rollout(
        make_env("mujoco-standup", max_episode_steps=200), load_expert("mujoco-standup", "mpc"), seed=1
    ).observations["continuous_observation"][:, 0]
    assert np.mean(heights[100:]) > 1


@pytest.mark.parametrize("task", [task for task in TRAINED if task != "mujoco-standup"])
def test_trained_networks_beat_the_published_expert(task):
    few = 5 if get_task(task).horizon == 1000 else 100
    assert scores(task, few).mean > reference_scores(task).expert


def test_the_humanoid_comes_up_in_four_of_five_episodes():
    """It fails in one of a hundred, which is among these."""
    assert sorted(scores("mujoco-standup", 5).scores)[1] > reference_scores("mujoco-standup").expert


@pytest.mark.slow
@pytest.mark.parametrize("task", TRAINED)
def test_trained_networks_beat_the_published_expert_over_100_episodes(task):
    assert scores(task, 100).mean >= reference_scores(task).expert


@pytest.mark.parametrize("task", TRAINED)
def test_trained_networks_say_how_they_were_made(task):
    with safe_open(weights_path(get_task(task)), "numpy") as file:
        metadata = file.metadata()
    assert metadata["task"] == task
    assert metadata["algorithm"].startswith(("PPO", "SAC"))
    assert {"hyperparameters", "timesteps", "seed", "command", "versions"} <= set(metadata)
    assert weights_path(get_task(task)).stat().st_size < (300_000 if task in HUMANOIDS else 100_000)


def test_games_whose_expert_is_a_network_are_those_that_have_one():
    learnt = {task.name for task in select_tasks("atari") if task.expert == "network"}
    assert learnt == {path.stem for path in WEIGHTS.glob("atari-*")}


@pytest.mark.parametrize("task", [task.name for task in select_tasks("atari") if task.expert == "network"])
def test_networks_of_atari_are_small_and_say_how_they_were_made(task):
    path = weights_path(get_task(task))
    assert path.stat().st_size < 300_000
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["task"] == task
    assert int(metadata["timesteps"]) >= 2_000_000
    assert {"algorithm", "hyperparameters", "returns", "seed", "command", "versions"} <= set(metadata)


def test_networks_compute_with_one_thread_and_leave_the_others_to_their_owner():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    inside = []

    def activation(x):
        inside.extend(threads())
        return x

    before = threads()
    layer = np.ones((4, 4), np.float32), np.zeros(4, np.float32)
    Network(layers=[layer, layer], activation=activation)(np.ones(4, np.float32))
    assert inside
    assert set(inside) == {1}
    assert threads() == before


def test_the_planner_leaves_the_emulator_as_it_was():
    env = make_env("atari-breakout")
    observation, _ = env.reset(seed=0)
    planner = load_expert("atari-breakout", "planner")
    planner.reset(env, seed=0)
    before = env.unwrapped.ale.getRAM().copy()
    action = planner.act(observation, None)
    assert np.array_equal(env.unwrapped.ale.getRAM(), before)
    assert env.action_space.contains(action)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "steps", "at_least"),
    [("atari-pong", 600, 1), ("atari-boxing", 600, 20), ("atari-freeway", 600, 3), ("atari-breakout", 300, 5)],
)
def test_the_planner_plays(task, steps, at_least):
    options = {"episodes": 1, "progress": False, "max_episode_steps": steps}
    assert evaluate(load_expert(task, "planner"), task, **options).mean >= at_least


def test_the_explorer_plays_what_it_found():
    env = make_env("atari-privateeye", max_episode_steps=600)
    explorer = ExplorerPolicy(budget=4000)
    env.reset(seed=0)
    before = env.unwrapped.ale.getRAM().copy()
    explorer.reset(env, seed=0)
    assert np.array_equal(env.unwrapped.ale.getRAM(), before)
    first, again = (rollout(env, explorer, seed=0) for _ in range(2))
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.rewards, again.rewards)
    assert first.total_reward > reference_scores("atari-privateeye").random


@pytest.mark.slow
@pytest.mark.parametrize(("task", "at_least"), [("atari-privateeye", 5000), ("atari-venture", 200)])
def test_the_explorer_finds_late_rewards(task, at_least):
    assert rollout(make_env(task), ExplorerPolicy(budget=60_000), seed=0).total_reward >= at_least


def test_random_actions_come_from_the_seed():
    env = make_env("mujoco-swimmer", max_episode_steps=5)
    policy = load_expert("mujoco-swimmer", "random")
    first, again, other = (rollout(env, policy, seed).actions for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_missing_and_unknown_experts():
    with pytest.raises(MissingExpertError, match=r"atari-pitfall has no weights at .*train_expert_atari.py"):
        load_expert("atari-pitfall", "network")
    with pytest.raises(MissingExpertError, match="needs an Atari emulator"):
        load_expert("mujoco-hopper", "planner")
    with pytest.raises(MissingExpertError, match="needs an Atari emulator"):
        load_expert("mujoco-hopper", "explorer")
    with pytest.raises(MissingExpertError, match="for Meta-World and mujoco-standup"):
        load_expert("mujoco-hopper", "mpc")
    with pytest.raises(MissingExpertError, match="wikipedia has no expert"):
        load_expert("wikipedia")
    with pytest.raises(ValueError, match=r"unknown expert 'oracle'.*expected one of bot"):
        load_expert("mujoco-hopper", "oracle")
