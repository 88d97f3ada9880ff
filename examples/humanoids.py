"""The two humanoids of MuJoCo, many at once on one core, to train their networks in.

Stepping them together, without an environment each, leaves nearly all of the time to the simulator. The one that stands
up begins anywhere on planned ways up to its knees: where it kneels already it soon learns to stay so, and from there
how to come up, later and later on the way: a curriculum in reverse (Florensa et al. 2017, arXiv 1707.05300).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from dataset_builder import TaskSpec, make_env
from dataset_builder.experts.mpc import PredictiveSampling, height
from dataset_builder.rollout import episode_seed

HUMANOIDS = ("mujoco-humanoid", "mujoco-standup")
UP, KNEELING = 0.65, 0.83  # metres of the torso's height
SINK = 0.35  # metres that it may lose of this before its episode is over
WAY = 120  # timesteps of a planned way
BEFORE, TOGETHER = 60, 6  # timesteps of a way before it is up that are begun from, so many of them as one stage
SETTLED = 20  # timesteps of a way after it is up


class Humanoids(VecEnv):
    """Humanoids that are stepped together, with the observations and rewards of their task.

    The simulator's integrator is Euler's: 2 (walking) to 3.5 (standing up) times as fast as the task's own, Runge-Kutta
    of the fourth order, and networks do as well under either.

    Args:
        task: `mujoco-humanoid` or `mujoco-standup`.
        num_envs: how many.
        seed: of their starts.
        max_episode_steps: default: the task's.
        stages: states (states, positions and velocities) to begin from, each stage harder than the next; before all of
            them comes the task's own start. An episode of a training that has stages is over when the torso has sunk.
        integrator: of the simulator.
    """

    def __init__(
        self,
        task: TaskSpec,
        num_envs: int,
        *,
        seed: int = 0,
        max_episode_steps: int | None = None,
        stages: Sequence[np.ndarray] = (),
        integrator: mujoco.mjtIntegrator = mujoco.mjtIntegrator.mjINT_EULER,
    ) -> None:
        env = make_env(task)
        self.task, self.simulator, self.model = task, env.unwrapped, env.unwrapped.model
        self.model.opt.integrator = integrator
        self.max_episode_steps = max_episode_steps or task.horizon
        self.stages = [np.concatenate([self.simulator.init_qpos, self.simulator.init_qvel])[None], *stages]
        self.mass = self.model.body_mass / self.model.body_mass.sum()
        self.humanoids = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self.rng = np.random.default_rng(seed)
        self.stage = np.zeros(num_envs, int)
        # Of each stage: the share of an episode's timesteps, of late, in which the humanoid was up.
        self.success = np.zeros(len(self.stages))
        self.age, self.x, self.top, self.up = (np.zeros(num_envs) for _ in range(4))
        space = env.observation_space["continuous_observation"]
        self.observations = np.zeros((num_envs, *space.shape))
        super().__init__(num_envs, gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float32), env.action_space)

    def reset(self) -> np.ndarray:
        for i in range(self.num_envs):
            self._begin(i)
        return self.observations.astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        x = self.x.copy()
        for i, humanoid in enumerate(self.humanoids):
            humanoid.ctrl[:] = self.actions[i]
            mujoco.mj_step(self.model, humanoid, nstep=self.simulator.frame_skip)
            mujoco.mj_rnePostConstraint(self.model, humanoid)  # forces of contact
            self._look(i)
        z = self.observations[:, 0]
        self.age += 1
        self.up += z > UP
        if self.task.name == "mujoco-humanoid":
            rewards = 5 + 1.25 * (self.x - x) / self.simulator.dt
            over = (z <= 1) | (z >= 2)
        else:
            forces = self.observations[:, -6 * self.model.nbody :]
            rewards = z / self.model.opt.timestep - np.minimum(0.5e-6 * np.square(forces).sum(axis=1), 10) + 1
            self.top = np.maximum(self.top, np.minimum(z, KNEELING))
            over = (z < self.top - SINK) & (len(self.stages) > 1)
        rewards -= 0.1 * np.square(self.actions).sum(axis=1)
        late = (self.age >= self.max_episode_steps) & ~over
        observations = self.observations.astype(np.float32)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(over | late):
            infos[i] = {"terminal_observation": observations[i].copy(), "TimeLimit.truncated": bool(late[i])}
            success = self.up[i] / self.max_episode_steps
            self.success[self.stage[i]] += 0.02 * (success - self.success[self.stage[i]])
            self._begin(i)
            observations[i] = self.observations[i]
        return observations, rewards.astype(np.float32), over | late, infos

    def _begin(self, i: int) -> None:
        """An episode, at a stage that is not mastered and follows on one that is."""
        humanoid, rng = self.humanoids[i], self.rng
        mujoco.mj_resetData(self.model, humanoid)
        chances = 0.02 + np.append(self.success[1:], 1) * (1.05 - self.success)
        self.stage[i] = rng.choice(len(chances), p=chances / chances.sum())
        state = rng.choice(self.stages[self.stage[i]])
        state = state + rng.uniform(-0.01, 0.01, len(state))
        humanoid.qpos[:], humanoid.qvel[:] = np.split(state, [self.model.nq])
        mujoco.mj_forward(self.model, humanoid)
        self._look(i)
        self.age[i], self.top[i], self.up[i] = 0, min(humanoid.qpos[2], KNEELING), 0

    def _look(self, i: int) -> None:
        humanoid = self.humanoids[i]
        rows = humanoid.qpos[2:], humanoid.qvel, humanoid.cinert, humanoid.cvel, humanoid.qfrc_actuator
        np.concatenate([row.ravel() for row in (*rows, humanoid.cfrc_ext)], out=self.observations[i])
        self.x[i] = self.mass @ humanoid.xipos[:, 0]

    def close(self) -> None:
        pass

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.simulator, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the humanoids share one model")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("the humanoids have no environments")


class Kneeling:
    """The value of states on the way to kneeling: near it, and once the torso is up, of little speed.

    The weights were found by trying: with a quarter of that of the bend, it squats on its feet, where it cannot stay.

    Args:
        model: of the humanoid that stands up.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.positions = np.zeros(model.nq)
        self.positions[:3] = 0, 0, KNEELING
        self.positions[3:7] = 0.5**0.5, 0, 0.5**0.5, 0  # upright
        joints = {"hip_x": -0.1, "knee": -1.5, "shoulder1": 0.3, "shoulder2": 0.4, "elbow": -1.0}
        for name, angle in joints.items():
            for side in ("right", "left"):
                outward = -1 if (side, name) in {("right", "shoulder1"), ("left", "shoulder2")} else 1
                self.positions[model.joint(f"{side}_{name}").qposadr] = outward * angle
        self.body = slice(7, model.joint("right_shoulder1").qposadr[0])  # joints other than the arms'

    def __call__(self, states: np.ndarray) -> np.ndarray:
        positions, speeds = np.split(states[..., 1:], [len(self.positions)], axis=-1)
        up = height(states[:, :1]) > 0.5
        w, x, y, z = np.moveaxis(positions[..., 3:7], -1, 0)
        tilt = 1 + 2 * (x * z - w * y)
        bend = np.square(positions[..., self.body] - self.positions[self.body]).sum(axis=-1)
        speed = 0.002 * np.square(speeds[..., :6]).sum(axis=-1) + 0.0004 * np.square(speeds[..., 6:]).sum(axis=-1)
        far = np.abs(height(states) - self.positions[2])
        return -far - 0.1 * tilt - np.where(up, 0.15, 0.03) * bend - up * speed


def way_up(task: TaskSpec, seed: int, index: int) -> np.ndarray:
    """A planned way from lying to kneeling, as states (timesteps, positions and velocities)."""
    env = make_env(task)
    simulator = env.unwrapped
    planner = PredictiveSampling(Kneeling(simulator.model))
    start = episode_seed(task.name, index, seed, purpose="train")
    observation, _ = env.reset(seed=start)
    planner.reset(env, start)
    states = []
    for _ in range(WAY):
        states.append(np.concatenate([simulator.data.qpos, simulator.data.qvel]))
        observation, *_ = env.step(planner.act(observation, None))
    return np.stack(states)


def stages_up(task: TaskSpec, ways: np.ndarray) -> list[np.ndarray]:
    """The states of the ways by their timesteps before the torso is up, then ever nearer to kneeling, and kneeling."""
    model = make_env(task).unwrapped.model
    kneeling = np.concatenate([Kneeling(model).positions, np.zeros(model.nv)])
    ways = ways[(ways[..., 2] > UP).any(axis=1)]
    is_up = ways[..., 2] > UP
    left = is_up.argmax(axis=1)[:, None] - np.arange(ways.shape[1])
    rising = [ways[(left > end - TOGETHER) & (left <= end)] for end in range(BEFORE, 0, -TOGETHER)]
    risen, up = ways[(left <= 0) & (left > -SETTLED)], ways[(left <= -SETTLED) & is_up]
    nearer = [kneeling + share * (up - kneeling) for share in (0.75, 0.5, 0.3, 0.15)]
    for states in nearer:
        states[:, 3:7] /= np.linalg.norm(states[:, 3:7], axis=1, keepdims=True)
    return [states for states in (*rising, risen, up, *nearer, kneeling[None]) if len(states)]
