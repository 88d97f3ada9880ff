"""The one loop: a policy plays an episode in an environment.

Experts, the random policy and JAT are all policies, and data, evaluations and videos all come from here.
"""

import zlib
from collections.abc import Callable, Generator
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces

from .envs import TaskEnv
from .episodes import Episode, Frames

Observation = dict[str, Any]
Action = np.ndarray | int


@runtime_checkable
class Policy(Protocol):
    """Chooses an action for every observation of one environment."""

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        """Begin an episode in `env`, which was just reset from `seed`."""

    def act(self, observation: Observation, reward: float | None) -> Action:
        """The action for an observation; `reward` is the one that came with it, None at the start."""


class ExpertGaveUp(RuntimeError):
    """The expert found no way on from a start that it should have refused; the episode is not recorded."""


def episode_seed(task: str, index: int, base_seed: int, *, purpose: str = "build", attempt: int = 0) -> int:
    """The seed of one episode: a function of its arguments alone, whatever the order or number of workers.

    Args:
        task: name of the task.
        index: the episode's number.
        base_seed: seed of the whole run.
        purpose: "build", "evaluate", or what else a trainer needs starts for. The same index has unrelated seeds for
            each, so that an agent is evaluated on starts that are in no data set.
        attempt: how many starts of this episode the expert gave up before this one.
    """
    key = zlib.crc32(f"{purpose}/{task}".encode())
    return int(np.random.SeedSequence([base_seed, key, index, attempt]).generate_state(1)[0])


def play(
    env: TaskEnv, seed: int, keep_observations: bool = True
) -> Generator[tuple[Observation, float | None], Action, Episode]:
    """One episode as a conversation: yields (observation, reward), is sent the action, returns the `Episode`.

    `rollout` holds this conversation with one policy; `evaluation` holds many at once with one batched agent, and
    keeps no observations.
    """
    keys = env.task.observation_keys if keep_observations else ()
    recorded: dict[str, Any] = {key: Frames() if key == "image_observation" else [] for key in keys}
    actions, rewards, successes = [], [], []
    observation, info = env.reset(seed=seed)
    reward, terminated, truncated = None, False, False
    while not (terminated or truncated):
        action = executable((yield observation, reward), env.action_space)
        for key, values in recorded.items():
            values.append(observation[key])
        observation, reward, terminated, truncated, info = env.step(action)
        actions.append(action)
        rewards.append(reward)
        if "success" in info:
            successes.append(bool(info["success"]))
    return Episode(
        task=env.task,
        seed=seed,
        observations={key: _sequence(values) for key, values in recorded.items()},
        actions=np.stack(actions) if isinstance(env.action_space, spaces.Box) else np.array(actions, np.int64),
        rewards=np.array(rewards, np.float32),
        terminated=bool(terminated),
        success=any(successes) if successes else None,
    )


def _sequence(values: Any) -> Any:
    """What was recorded, as an episode holds it."""
    if isinstance(values, Frames):
        return values
    return tuple(values) if isinstance(values[0], str) else np.stack(values)


def rollout(
    env: TaskEnv,
    policy: Policy,
    seed: int,
    on_step: Callable[[TaskEnv], None] | None = None,
    keep_observations: bool = True,
) -> Episode:
    """Play one episode.

    Args:
        env: from `make_env`.
        policy: the same seed gives the same episode as long as the policy is a function of its seed and of what it
            is shown.
        seed: of the environment's reset and of the policy.
        on_step: called before every action, for instance to render.
        keep_observations: whether the episode holds them.

    Raises:
        ValueError: if the policy returns an action outside the action space's shape, or that is not finite.
        ExpertGaveUp: if an expert found no way on.
    """
    episode = play(env, seed, keep_observations)
    observation, reward = next(episode)
    policy.reset(env, seed)
    while True:
        if on_step is not None:
            on_step(env)
        try:
            observation, reward = episode.send(policy.act(observation, reward))
        except StopIteration as end:
            return end.value


def executable(action: Action, space: spaces.Space) -> Action:
    """The action as it will be executed and stored: inside the Box, or an int."""
    if isinstance(space, spaces.Box):
        array = np.asarray(action, space.dtype)
        if array.shape != space.shape or not np.isfinite(array).all():
            raise ValueError(f"expected an action of shape {space.shape} with finite values, got {action!r}")
        return np.clip(array, space.low, space.high)
    if not space.contains(np.int64(action)):
        raise ValueError(f"expected an action of {space}, got {action!r}")
    return int(action)
