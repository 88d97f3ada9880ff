"""The trainers of experts, for a few seconds each."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from humanoids import HUMANOIDS, Humanoids, Kneeling, stages_up, way_up
from safetensors import safe_open
from safetensors.numpy import load_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from teach_expert_atari import Emulator
from train_expert_mujoco import NUM_WAYS, ExcessCost, HoldPolicy, export, restore, save

from dataset_builder import get_task, make_env, rollout
from dataset_builder.experts.network import OBSERVATION_LIMIT, read_network, weights_path
from dataset_builder.scores import reference_scores

EXAMPLES = Path(__file__).parent.parent / "examples"


def train(domain, folder, *options):
    """The trainer's output."""
    command = [sys.executable, EXAMPLES / f"train_expert_{domain}.py", *options]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def metadata(path):
    with safe_open(path, "numpy") as file:
        return file.metadata()


def atari(folder, timesteps):
    options = ["--tasks", "atari-pong", "--games", "1", "--output", ".", "--timesteps", timesteps]
    return train("atari", folder, *options), folder / "atari-pong.safetensors"


def test_a_network_of_atari(tmp_path):
    """The same seed trains the same one; a bigger budget goes on with it."""
    trained = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        output, path = atari(tmp_path / name, "2048")
        assert "2,048 timesteps" in output
        trained.append((metadata(path), {key: array.tobytes() for key, array in load_file(path).items()}))
    assert trained[0] == trained[1]
    first = path.read_bytes()
    assert len(first) < 300_000
    output, _ = atari(path.parent, "6144")
    assert "going on at 2,048 timesteps" in output
    assert path.read_bytes() != first
    assert metadata(path)["timesteps"] == "6144"
    with make_env("atari-pong", max_episode_steps=50) as env:
        policy = read_network(path)
        assert len({rollout(env, policy, 0).actions.tobytes() for _ in range(2)}) == 1


def test_a_network_of_mujoco_goes_on_and_learns(tmp_path):
    options = ["--tasks", "mujoco-pendulum", "--output", ".", "--episodes", "5"]
    output = train("mujoco", tmp_path, *options, "--timesteps", "20000")
    assert "20,480 timesteps" in output
    output = train("mujoco", tmp_path, *options, "--timesteps", "40000")
    assert "going on at 20,480 timesteps" in output
    path = tmp_path / "mujoco-pendulum.safetensors"
    assert metadata(path)["command"].startswith("python examples/train_expert_mujoco.py --tasks mujoco-pendulum")
    with make_env("mujoco-pendulum") as env:
        assert rollout(env, read_network(path), 1).total_reward > 10 * reference_scores("mujoco-pendulum").random


def test_a_training_that_starts_from_a_network_keeps_it_while_its_value_function_is_learnt(tmp_path):
    """Its first networks are the same one, though what it sees differs from what made the network's normaliser."""
    start = weights_path(get_task("mujoco-humanoid"))
    options = ["--tasks", "mujoco-humanoid", "--start-from", start.parent, "--output", ".", "--episodes", "1"]
    train("mujoco", tmp_path, *options, "--timesteps", "8192")
    expected, kept = load_file(start), load_file(tmp_path / "mujoco-humanoid.safetensors")
    assert set(kept) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(kept[name], array, rtol=1e-5, err_msg=name)


def test_a_held_policy_learns_when_its_time_has_come():
    envs = make_vec_env(lambda: gymnasium.wrappers.FlattenObservation(make_env("mujoco-pendulum")), 1, seed=0)
    model = PPO("MlpPolicy", VecNormalize(envs), n_steps=64, seed=0, device="cpu")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}

    def changed():
        after = model.policy.state_dict()
        return {name for name, value in before.items() if not value.equal(after[name])}

    policy = {name for name in before if "policy" in name or name.startswith(("action_net", "log_std"))}
    model.learn(128, HoldPolicy(128))
    assert changed() == set(before) - policy
    model.learn(64, HoldPolicy(128), reset_num_timesteps=False)
    assert changed() == set(before)


def test_actions_beyond_their_bounds_are_clipped_and_cost():
    def step(share):
        envs = make_vec_env(lambda: gymnasium.wrappers.FlattenObservation(make_env("mujoco-pusher")), 2, seed=0)
        high = envs.action_space.high
        envs = ExcessCost(VecNormalize(envs), cost=0.25)
        envs.reset()
        observations, rewards, *_ = envs.step(np.tile(share * high, (2, 1)))
        return observations, rewards

    (observations, rewards), (as_before, lower) = step(-1), step(-2)
    np.testing.assert_array_equal(as_before, observations)
    np.testing.assert_allclose(rewards - lower, 0.25 * 7)


def test_a_training_with_sac_goes_on(tmp_path):
    options = ["--tasks", "mujoco-pusher", "--output", ".", "--episodes", "1"]
    assert "1,600 timesteps" in train("mujoco", tmp_path, *options, "--timesteps", "1600")
    assert "going on at 1,600 timesteps" in train("mujoco", tmp_path, *options, "--timesteps", "3200")
    assert metadata(tmp_path / "mujoco-pusher.safetensors")["algorithm"] == "SAC (Stable-Baselines3)"


@pytest.mark.parametrize("task", HUMANOIDS)
def test_humanoids_are_the_task(task):
    """Under the task's own integrator, they see and earn what its environment gives for the same actions."""
    humanoids = Humanoids(get_task(task), 2, integrator=mujoco.mjtIntegrator.mjINT_RK4)
    observations = humanoids.reset()
    env = make_env(task)
    env.reset(seed=0)
    env.unwrapped.set_state(humanoids.humanoids[1].qpos, humanoids.humanoids[1].qvel)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.uniform(humanoids.action_space.low, humanoids.action_space.high, (2, 17)).astype(np.float32)
        observations, rewards, dones, infos = humanoids.step(actions)
        observation, reward, terminated, *_ = env.step(actions[1])
        assert dones[1] == terminated
        seen = infos[1]["terminal_observation"] if terminated else observations[1]
        np.testing.assert_allclose(seen, observation["continuous_observation"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(rewards[1], reward, rtol=1e-4)
        if terminated:
            break


def straight_ways():
    """From lying to kneeling in a straight line, and on."""
    model = make_env("mujoco-standup").unwrapped.model
    lying = np.concatenate([model.qpos0, np.zeros(model.nv)])
    kneeling = np.concatenate([Kneeling(model).positions, np.zeros(model.nv)])
    return lying + np.clip(np.linspace(0, 1.5, 120), 0, 1)[None, :, None] * (kneeling - lying)


def test_stages_lead_from_kneeling_back_to_lying():
    stages = stages_up(get_task("mujoco-standup"), straight_ways())
    heights = [states[:, 2].mean() for states in stages]
    assert heights == sorted(heights)
    assert heights[0] < 0.4
    assert heights[-1] == 0.83


def test_episodes_begin_where_the_next_stage_is_mastered():
    """The seed decides where."""
    task = get_task("mujoco-standup")
    humanoids, again = (Humanoids(task, 200, stages=stages_up(task, straight_ways())) for _ in range(2))
    last = len(humanoids.success) - 1
    np.testing.assert_array_equal(humanoids.reset(), again.reset())
    assert np.mean(humanoids.stage == last) > 0.5
    humanoids.success[-2:] = 1
    humanoids.reset()
    assert np.mean(humanoids.stage == last - 2) > 0.5


def test_a_training_on_ways_up_goes_on(tmp_path):
    ways = tmp_path / "runs" / "experts" / "mujoco-standup-0-ways"
    ways.mkdir(parents=True)
    for index in range(NUM_WAYS):
        np.save(ways / f"{index}.npy", straight_ways()[0])
    options = ["--tasks", "mujoco-standup", "--output", ".", "--episodes", "1"]
    assert "4,096 timesteps" in train("mujoco", tmp_path, *options, "--timesteps", "4096")
    assert "going on at 4,096 timesteps" in train("mujoco", tmp_path, *options, "--timesteps", "8192")


def test_a_training_goes_on_from_the_stages_that_were_mastered(tmp_path):
    def model():
        stages = stages_up(get_task("mujoco-standup"), straight_ways())
        return PPO("MlpPolicy", VecNormalize(Humanoids(get_task("mujoco-standup"), 2, stages=stages)), device="cpu")

    trained, going_on = model(), model()
    trained.env.venv.success[-3:] = 0.5, 0.75, 1
    save(trained, 0.0, tmp_path / "checkpoint.pt")
    restore(going_on, tmp_path / "checkpoint.pt")
    np.testing.assert_array_equal(going_on.env.venv.success, trained.env.venv.success)


@pytest.mark.slow
def test_planned_ways_reach_kneeling():
    ways = np.stack([way_up(get_task("mujoco-standup"), 0, index) for index in range(4)])
    assert (ways[:, 0, 2] < 0.15).all()
    assert np.mean(ways[..., 2].max(axis=1) > 0.7) >= 0.75


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_the_network_that_is_written_acts_as_the_trained_one(tmp_path, algorithm):
    envs = make_vec_env(lambda: gymnasium.wrappers.FlattenObservation(make_env("mujoco-pusher")), 1, seed=0)
    envs = VecNormalize(envs, clip_obs=OBSERVATION_LIMIT)
    model = algorithm("MlpPolicy", envs, seed=0, device="cpu")
    envs.reset()
    for _ in range(50):
        envs.step([envs.action_space.sample()])
    path = tmp_path / "network.safetensors"
    export(model, path, {})
    observations = envs.get_original_obs()
    [expected], _ = model.predict(envs.normalize_obs(observations), deterministic=True)
    action = read_network(path).act({"continuous_observation": observations[0]}, None)
    np.testing.assert_allclose(action, expected, atol=1e-5)


@pytest.mark.parametrize("domain", ["atari", "mujoco"])
def test_other_tasks_are_refused(tmp_path, domain):
    command = [sys.executable, EXAMPLES / f"train_expert_{domain}.py", "--tasks", "babyai-go-to"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "babyai-go-to" in result.stderr


def test_the_teachers_emulator_shows_what_the_environment_shows():
    """Also after it was restored, so that what it simulates is what would happen."""
    envs = [make_env("atari-breakout") for _ in range(2)]
    observation, first = (env.reset(seed=3)[0]["image_observation"] for env in envs)
    emulator, rng = Emulator(envs[1], first), np.random.default_rng(0)
    for t in range(200):
        assert np.array_equal(np.moveaxis(observation, -1, 0), emulator.observation)
        saved = emulator.save()
        emulator.step(int(rng.integers(4)))
        emulator.restore(saved)
        action, lives = int(rng.integers(4)), envs[0].unwrapped.ale.lives()
        observation, reward, terminated, _, _ = envs[0].step(action)
        observation = observation["image_observation"]
        lost_life = envs[0].unwrapped.ale.lives() < lives
        assert emulator.step(action) == (np.sign(reward) - lost_life, not terminated), t
        if terminated:
            break
