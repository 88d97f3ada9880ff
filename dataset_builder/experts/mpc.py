"""Model-predictive control: plans are tried on the simulator itself, and the best one is followed for a few timesteps.

For Meta-World the plans are what the script would do, and changes of it: scripts reach their goals late and without
haste; this earns more in the same time. For the humanoid that stands up they begin with nothing (predictive sampling,
Howell et al. 2022, arXiv 2212.00541). Simulator steps are counted, never seconds: the same seed gives the same
episode. But the actions depend on the whole state of the simulator, of which the observation shows a part.
"""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import mujoco.rollout
import numpy as np

from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError
from .scripted import ScriptedPolicy
from .scripted import load as load_script


class _Simulator:
    """The state of a Meta-World environment, saved and put back exactly."""

    KIND = mujoco.mjtState.mjSTATE_INTEGRATION

    def __init__(self, env: gymnasium.Env) -> None:
        self.env = env.unwrapped
        self.saved = np.empty(mujoco.mj_stateSize(self.env.model, self.KIND))

    def save(self) -> None:
        mujoco.mj_getState(self.env.model, self.env.data, self.saved, self.KIND)
        # What the environment itself remembers: the last observation, timesteps, starting positions.
        plain = (np.ndarray, int, float, bool, type(None))
        self.memory: dict[str, Any] = {
            name: copy.copy(value) for name, value in vars(self.env).items() if isinstance(value, plain)
        }

    def restore(self) -> None:
        mujoco.mj_setState(self.env.model, self.env.data, self.saved, self.KIND)
        mujoco.mj_forward(self.env.model, self.env.data)  # positions of everything, from those of the joints
        mujoco.mj_setState(self.env.model, self.env.data, self.saved, self.KIND)  # and what that changed
        vars(self.env).update({name: copy.copy(value) for name, value in self.memory.items()})

    @property
    def steps_left(self) -> int:
        return self.env.max_path_length - self.env.curr_path_length


class PredictivePolicy:
    """Follows the best of some plans, each `horizon` timesteps long.

    Args:
        script: whose actions are bettered.
        candidates: plans that are tried at every decision.
        horizon: timesteps of a plan.
        executed: timesteps of a plan that are executed before the next decision.
        noise: standard deviation of the changes, held for a few timesteps each.
    """

    def __init__(
        self, script: ScriptedPolicy, candidates: int = 16, horizon: int = 30, executed: int = 5, noise: float = 0.5
    ) -> None:
        self.script, self.candidates, self.horizon, self.executed = script, candidates, horizon, executed
        self.noise = noise

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.script.reset(env, seed)
        self.simulator = _Simulator(env)
        self.rng = np.random.default_rng(seed)
        self.plan = np.zeros((0, 4))
        self.position = 0

    def act(self, observation: Observation, reward: float | None) -> np.ndarray:
        if self.position % self.executed == 0:
            self.plan = self._decide(observation, self.plan[self.executed :])
            self.position = 0
        self.position += 1
        return self.plan[self.position - 1]

    def _decide(self, observation: Observation, last: np.ndarray) -> np.ndarray:
        self.simulator.save()
        length = min(self.horizon, self.simulator.steps_left)
        best, best_return = self._try(observation, last[:0], None, length)
        for candidate in range(self.candidates - 1):
            # The rest of the last plan first as it is, then it or the best one so far with changes.
            start = last if candidate == 0 else [last, best][candidate % 2]
            changes = None if candidate == 0 else self._changes(length)
            plan, earned = self._try(observation, start, changes, length)
            if earned > best_return:
                best, best_return = plan, earned
        return best

    def _changes(self, length: int) -> np.ndarray:
        hold = int(self.rng.integers(1, 11))
        held = self.rng.normal(0, self.noise, (-(-length // hold), 4))
        return np.repeat(held, hold, axis=0)[:length] * (self.rng.random(4) < 0.7)

    def _try(
        self, observation: Observation, start: np.ndarray, changes: np.ndarray | None, length: int
    ) -> tuple[np.ndarray, float]:
        """Play a plan, from the saved state: its start as given, then what the script does, with changes."""
        env, earned = self.simulator.env, 0.0
        values = observation["continuous_observation"].astype(np.float64)
        plan = np.empty((length, 4), np.float32)
        for t in range(length):
            action = start[t] if t < len(start) else self.script.script.get_action(values)
            plan[t] = np.clip(action if changes is None else action + changes[t], -1, 1)
            values, reward, *_ = env.step(plan[t])
            earned += float(reward)
        self.simulator.restore()
        return plan, earned


def height(states: np.ndarray) -> np.ndarray:
    """Of the torso in each of the simulator's states (..., 1 + positions + velocities), which begin with the time."""
    return states[..., 1 + 2]


class PredictiveSampling:
    """Raises the humanoid that stands up, whose reward is the height of its torso.

    It follows the best of some plans: what is left of the last one, and changes of it.

    Args:
        value: of states, whose mean over a plan is what makes it good.
        candidates: plans that are tried at every decision.
        horizon: timesteps of a plan.
        executed: timesteps of a plan that are executed before the next decision.
        knots: of the changes, which are interpolated between them.
        noise: standard deviations of the changes, as shares of the largest action; the candidates take turns.
    """

    # More candidates are worth more than the simulator's own precision, a fourth-order method in 5 substeps.
    INTEGRATOR, SUBSTEPS = mujoco.mjtIntegrator.mjINT_EULER, 3
    STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS

    def __init__(
        self,
        value: Callable[[np.ndarray], np.ndarray] = height,
        candidates: int = 100,
        horizon: int = 50,
        executed: int = 2,
        knots: int = 8,
        noise: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0),
    ) -> None:
        self.value, self.candidates, self.horizon, self.executed = value, candidates, horizon, executed
        self.noise = np.resize(noise, candidates)[:, None, None]
        at = np.linspace(0, horizon - 1, knots)
        self.interpolation = np.stack([np.interp(np.arange(horizon), at, knot) for knot in np.eye(knots)], axis=1)

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.env = env.unwrapped
        self.model = copy.copy(self.env.model)
        self.model.opt.integrator = self.INTEGRATOR
        self.model.opt.timestep = self.env.dt / self.SUBSTEPS
        self.scratch = mujoco.MjData(self.model)
        self.rng = np.random.default_rng(seed)
        self.plan = np.zeros((self.horizon, self.model.nu))
        self.position = 0

    def act(self, observation: Observation, reward: float | None) -> np.ndarray:
        if self.position % self.executed == 0:
            held = np.repeat(self.plan[-1:], self.position, axis=0)
            self.plan = self._decide(np.concatenate([self.plan[self.position :], held]))
            self.position = 0
        self.position += 1
        return self.plan[self.position - 1].astype(np.float32)

    def _decide(self, last: np.ndarray) -> np.ndarray:
        low, high = self.model.actuator_ctrlrange.T
        changes = self.rng.normal(0, 1, (self.candidates, self.interpolation.shape[1], len(high)))
        changes[0] = 0
        plans = np.clip(last + self.interpolation @ (self.noise * high * changes), low, high)
        return plans[self.value(self._states(plans)).mean(axis=1).argmax()]

    def _states(self, plans: np.ndarray) -> np.ndarray:
        """What plans lead to from the present state, at each of their timesteps: (plans, horizon, state)."""
        state = np.empty(mujoco.mj_stateSize(self.model, self.STATE))
        mujoco.mj_getState(self.model, self.env.data, state, self.STATE)
        controls = np.repeat(plans, self.SUBSTEPS, axis=1)
        states, _ = mujoco.rollout.rollout(self.model, self.scratch, state, controls)
        return states[:, self.SUBSTEPS - 1 :: self.SUBSTEPS]


def load(task: TaskSpec) -> PredictivePolicy | PredictiveSampling:
    if task.domain == "metaworld":
        return PredictivePolicy(load_script(task))
    if task.name == "mujoco-standup":
        return PredictiveSampling()
    raise MissingExpertError(f"model-predictive control is for Meta-World and mujoco-standup, not for {task.name}")
