"""Tasks that users register: environments outside the four domains, from their expert to a trained agent."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import make_config
from datasets import load_dataset
from gymnasium import spaces

from dataset_builder import TaskSpec, evaluate, load_expert, make_env, register_task, rollout, select_tasks, tasks
from dataset_builder.builder import build
from dataset_builder.evaluation import AgentPolicy
from modeling_jat import JatModelForCausalLM
from processing_jat import JatProcessor

ROOT = Path(__file__).parent.parent


class Spaces(gymnasium.Env):
    """Samples its spaces for five timesteps; succeeds at the last."""

    render_mode = None

    def __init__(self, observation, action, render_mode=None):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 5, False, {"is_success": self.t == 5}


BOX = spaces.Box(-1, 1, (2, 3), np.float64)
CASES = {
    "box": (BOX, {"continuous_observation": (6,)}),
    "unbounded": (spaces.Box(-np.inf, np.inf, (4,)), {"continuous_observation": (4,)}),
    "discrete": (spaces.Discrete(5, start=3), {"discrete_observation": (1,)}),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), {"discrete_observation": (2,)}),
    "multi-binary": (spaces.MultiBinary(4), {"discrete_observation": (4,)}),
    "rgb": (spaces.Box(0, 255, (60, 90, 3), np.uint8), {"image_observation": (84, 84, 4)}),
    "gray": (spaces.Box(0, 255, (60, 90), np.uint8), {"image_observation": (84, 84, 4)}),
    "stacked": (spaces.Box(0, 255, (84, 84, 4), np.uint8), {"image_observation": (84, 84, 4)}),
    "dict-continuous": (
        spaces.Dict(a=BOX, b=spaces.Discrete(3), c=spaces.Dict(d=spaces.MultiBinary(2))),
        {"continuous_observation": (11,)},
    ),
    "dict-discrete": (
        spaces.Dict(a=spaces.Discrete(3), b=spaces.MultiDiscrete([2, 2])),
        {"discrete_observation": (3,)},
    ),
    "dict-text": (
        spaces.Dict(mission=spaces.Text(10), where=spaces.Discrete(9)),
        {"text_observation": None, "discrete_observation": (1,)},
    ),
    "tuple": (spaces.Tuple((spaces.Discrete(3), BOX)), {"continuous_observation": (9,)}),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "from-2": spaces.Discrete(3, start=2),
    "box": spaces.Box(-2, 2, (2, 2), np.float64),
}


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    """Rows that a test registers are gone after it."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))


def register(name, observation, action, expert="random"):
    env_id = f"{name.title()}-v0"
    gymnasium.register(env_id, entry_point=lambda **kwargs: Spaces(observation, action, **kwargs))
    return register_task(TaskSpec(name=name, env_id=env_id, instruction="do it", expert=expert))


@pytest.fixture
def small_agent():
    processor = JatProcessor.from_texts(["do it", "a b c d"], vocab_size=300, model_max_length=64)
    return AgentPolicy(JatModelForCausalLM(make_config()).eval(), processor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("name", CASES)
def test_spaces(tmp_path, small_agent, name, actions):
    """Whatever the spaces: an environment that keeps its promises, data that load, and an agent that plays."""
    space, expected = CASES[name]
    task = register(f"{name}-{actions}", space, ACTIONS[actions])
    env = make_env(task)
    assert set(env.observation_space) == set(expected)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for key, shape in expected.items():
        assert shape is None or observation[key].shape == shape
    episode = rollout(env, load_expert(task), 0)
    assert len(episode) == 5
    assert episode.success is True
    folder = build(task.name, tmp_path, episodes=2, progress=False)
    dataset = load_dataset(str(folder), task.name, split="train")
    assert len(dataset[0]["rewards"]) == 5
    score = evaluate(small_agent, task, episodes=2, num_envs=2, progress=False)
    assert score.scores == [5.0, 5.0]


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Dict(a=CASES["rgb"][0], b=BOX), ACTIONS["box"], "one image alone"),
        (spaces.Dict(a=spaces.Text(5), b=BOX), ACTIONS["box"], "beside discrete observations only"),
        (spaces.Box(0, 255, (60, 90, 2), np.uint8), ACTIONS["box"], "1 or 3 channels"),
        (spaces.Sequence(BOX), ACTIONS["box"], "expected Box, Discrete"),
        (BOX, spaces.MultiDiscrete([2, 2]), "expected Discrete or Box actions"),
    ],
)
def test_spaces_that_are_refused(observation, action, message):
    with pytest.raises(ValueError, match=message) as error:
        register("strange", observation, action)
    assert "strange (Strange-v0)" in str(error.value)


def test_names_that_are_refused():
    for name, message in (("mujoco-ant", "exists already"), ("My Task", "lower-case"), ("../up", "lower-case")):
        with pytest.raises(ValueError, match=message):
            register_task(TaskSpec(name=name, env_id="CartPole-v1", instruction="balance"))


class Alternate:
    """A policy that is not a function."""

    def reset(self, env, seed):
        self.action = 0

    def act(self, observation, reward):
        self.action = 1 - self.action
        return self.action


def push_right(observation):
    return 1


@pytest.mark.parametrize(
    ("expert", "name"),
    [
        (push_right, "test_own_tasks.push_right"),
        (Alternate(), "test_own_tasks.Alternate"),
        (Alternate, "test_own_tasks.Alternate"),
    ],
)
def test_experts(tmp_path, expert, name):
    task = register_task(TaskSpec(name="pole", env_id="CartPole-v1", instruction="balance", expert=expert))
    assert select_tasks("pole") == [task]
    assert task.columns == ("continuous_observations", "discrete_actions", "rewards")
    folder = build("pole", tmp_path, episodes=3, num_workers=2, progress=False)
    assert json.loads((folder / "pole" / "manifest.json").read_text())["recipe"]["expert"] == name
    actions = load_dataset(str(folder), "pole", split="train")[0]["discrete_actions"]
    assert actions[:2] == ([1, 1] if expert is push_right else [1, 0])
    random = build("pole", tmp_path / "random", episodes=1, expert="random", progress=False)
    assert json.loads((random / "pole" / "manifest.json").read_text())["recipe"]["expert"] == "random"


SCRIPT = """
import sys
from dataset_builder import TaskSpec, register_task
from dataset_builder.builder import build

def push_left(observation):
    return 0

if __name__ == "__main__":
    register_task(TaskSpec(name="pole", env_id="CartPole-v1", instruction="balance", expert=push_left))
    build("pole", sys.argv[1], episodes=30, num_workers=2, progress=False)
"""


def test_an_expert_of_a_script(tmp_path):
    """Also in the processes that the script starts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), str(tmp_path / "data")], check=True)
    actions = load_dataset(str(tmp_path / "data"), "pole", split="train")["discrete_actions"]
    assert {action for episode in actions for action in episode} == {0}


def test_an_expert_that_cannot_be_sent_to_workers(tmp_path):
    register_task(TaskSpec(name="pole", env_id="CartPole-v1", instruction="balance", expert=lambda observation: 1))
    with pytest.raises(ValueError, match="cannot be sent to worker processes"):
        build("pole", tmp_path / "a", episodes=2, num_workers=2)
    build("pole", tmp_path / "a", episodes=2, progress=False)


def test_the_example(tmp_path):
    """Built, trained and evaluated like any task, by the commands that its file names."""

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
        ).stdout

    own = ("--register", "examples/own_task.py")
    data, model = str(tmp_path / "data"), str(tmp_path / "jat")
    build_options = ("--tasks", "cartpole", "--episodes", "20", "--num-workers", "2", "--output", data)
    run("-m", "dataset_builder", "build", *own, *build_options)
    manifest = json.loads((tmp_path / "data" / "cartpole" / "manifest.json").read_text())
    assert manifest["mean_return"] == 500
    sizes = ("--hidden-size", "64", "--num-layers", "1", "--num-heads", "2", "--window", "16")
    training = ("--steps", "300", "--batch-size", "8", "--learning-rate", "3e-3")
    run("examples/train.py", *own, "--data", data, "--output", model, *sizes, *training)
    run("examples/evaluate.py", *own, "--model", model, "--tasks", "cartpole", "--episodes", "10")
    [score] = json.loads((tmp_path / "jat" / "evaluation.json").read_text())["tasks"]
    assert score["figures"]["return"] > 100  # random: 22


def test_a_file_that_is_not_there(capsys):
    from dataset_builder.__main__ import main

    assert main(["list", "--register", "nowhere.py"]) == 2
    assert "there is no file nowhere.py" in capsys.readouterr().err
