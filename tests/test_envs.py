import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dataset_builder import make_env, make_vec_env, select_tasks
from dataset_builder.envs import rendering_problem

FEW_OF_EACH = [
    "atari-pong", "atari-breakout", "atari-mspacman",
    "babyai-go-to-local", "babyai-boss-level", "babyai-unlock-pickup",
    "metaworld-reach", "metaworld-assembly", "metaworld-window-open",
    "mujoco-ant", "mujoco-pusher", "mujoco-humanoid",
]  # fmt: skip
SHAPES = {
    "continuous_observation": (None, np.float32),
    "discrete_observation": ((148,), np.int64),
    "image_observation": ((84, 84, 4), np.uint8),
}
CONTINUOUS_SIZES = {"metaworld": {39}, "mujoco": {4, 8, 11, 17, 23, 27, 376}}


def check_contract(task):
    """Every environment keeps the promises of `dataset_builder.envs`, observation after observation."""
    with make_env(task) as env:
        assert isinstance(env, gymnasium.Env)
        observation, _ = env.reset(seed=0)
        assert tuple(observation) == tuple(sorted(env.observation_space)) or set(observation) == set(
            task.observation_keys
        )
        for _ in range(3):
            assert env.observation_space.contains(observation)
            for key, value in observation.items():
                if key == "text_observation":
                    assert isinstance(value, str)
                    continue
                shape, dtype = SHAPES[key]
                assert value.dtype == dtype
                if shape is None:
                    assert value.shape in {(size,) for size in CONTINUOUS_SIZES[task.domain]}
                else:
                    assert value.shape == shape
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
            assert np.ndim(reward) == 0
            assert isinstance(bool(terminated or truncated), bool)
            if task.domain in ("babyai", "metaworld"):
                assert type(info["success"]) is bool
        if task.action_column == "continuous_actions":
            assert isinstance(env.action_space, spaces.Box)
            assert env.action_space.dtype == np.float32
        else:
            assert isinstance(env.action_space, spaces.Discrete)
            assert env.action_space.n <= 18


@pytest.mark.parametrize("task", select_tasks(FEW_OF_EACH), ids=lambda task: task.name)
def test_contract(task):
    check_contract(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", select_tasks("all"), ids=lambda task: task.name)
def test_contract_of_all(task):
    check_contract(task)


@pytest.mark.parametrize("task", select_tasks(FEW_OF_EACH), ids=lambda task: task.name)
def test_an_episode_is_a_function_of_its_seed(task):
    def play(env, seed):
        env.action_space.seed(0)
        observation, _ = env.reset(seed=seed)
        trace = [observation]
        for _ in range(20):
            observation, reward, *_ = env.step(env.action_space.sample())
            trace += [observation, reward]
        return trace

    with make_env(task) as env, make_env(task) as other:
        first = play(env, 1)
        play(env, 2)
        again, elsewhere = play(env, 1), play(other, 1)
    for a, b, c in zip(first, again, elsewhere, strict=True):
        if isinstance(a, dict):
            assert all(np.array_equal(a[key], b[key]) and np.array_equal(a[key], c[key]) for key in a)
        else:
            assert a == b == c


@pytest.mark.parametrize("game", ["pong", "breakout", "space_invaders"])
def test_atari_observations_are_those_of_the_vector_environment(game):
    from ale_py.vector_env import AtariVectorEnv

    reference = AtariVectorEnv(game, num_envs=1, noop_max=0, reward_clipping=False)
    env = make_env("atari-" + game.replace("_", ""), noop_max=0)
    expected, _ = reference.reset(seed=0)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert np.array_equal(np.moveaxis(expected[0], 0, -1), observation["image_observation"])
        action = rng.integers(env.action_space.n)
        expected, expected_reward, expected_end, *_ = reference.step(np.array([action]))
        observation, reward, terminated, *_ = env.step(action)
        assert (reward, terminated) == (expected_reward[0], expected_end[0])
        if terminated:
            break


def test_vector_environment():
    envs = make_vec_env("metaworld-reach", 3)
    observation, _ = envs.reset(seed=[0, 1, 2])
    assert observation["continuous_observation"].shape == (3, 39)
    assert len(np.unique(observation["continuous_observation"][:, -3:], axis=0)) == 3  # a goal for each
    before = observation["continuous_observation"].copy()
    mask = np.array([False, True, False])
    observation, _ = envs.reset(seed=[None, 7, None], options={"reset_mask": mask})
    assert (observation["continuous_observation"] == before).all(axis=1).tolist() == [True, False, True]


def test_text_subsets_have_no_environment():
    with pytest.raises(ValueError, match="no environment"):
        make_env("wikipedia")


def test_max_episode_steps():
    env = make_env("mujoco-swimmer", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]


def test_a_machine_that_cannot_render_says_so():
    code = "from dataset_builder.envs import rendering_problem; print(rendering_problem('mujoco-swimmer'))"
    environment = {**os.environ, "MUJOCO_GL": "glfw"} | {"DISPLAY": "", "WAYLAND_DISPLAY": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "Error" in result.stdout


@pytest.mark.skipif(rendering_problem("mujoco-ant") is not None, reason="this machine cannot render MuJoCo")
@pytest.mark.parametrize("task", ["ant", "halfcheetah", "hopper", "humanoid", "standup", "swimmer", "walker"])
def test_the_camera_follows_a_body_that_walks_away(task):
    with make_env(f"mujoco-{task}", render_mode="rgb_array") as env:
        env.reset(seed=0)
        env.render()
        frames = []
        for bent in (0.0, 0.2):
            position = env.unwrapped.init_qpos + bent
            position[0] = 30  # metres
            env.unwrapped.set_state(position, env.unwrapped.init_qvel)
            frames.append(env.render())
    assert (frames[0] != frames[1]).any()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a screen")
def test_an_environment_starts_no_other_python():
    """Of such a process, the end of its worker would leave a traceback."""
    code = """
import sys
from dataset_builder import make_env

sys.addaudithook(lambda event, args: event == "subprocess.Popen" and print(args[1]))
make_env("metaworld-reach")
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYGLFW_LIBRARY")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert sys.executable not in result.stdout


def test_action_noise_disturbs_about_every_second_episode_by_its_seed():
    noisy, clean = make_env("mujoco-reacher", action_noise=0.3), make_env("mujoco-reacher")

    def final(env, seed):
        env.reset(seed=seed)
        for _ in range(10):
            observation, *_ = env.step(np.zeros(2, np.float32))
        return observation["continuous_observation"]

    disturbed = [not np.array_equal(final(noisy, seed), final(clean, seed)) for seed in range(40)]
    assert 10 < sum(disturbed) < 30
    seed = disturbed.index(True)
    assert np.array_equal(final(noisy, seed), final(noisy, seed))


def test_action_noise_needs_continuous_actions():
    with pytest.raises(ValueError, match=r"action noise needs continuous actions with bounds, got Discrete\(7\)"):
        make_env("babyai-go-to", action_noise=0.3)
