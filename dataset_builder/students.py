"""A student's actions, so that data show how an expert goes on from where the student gets itself.

DAgger (Ross et al. 2011, arXiv 1011.0686): the environment executes actions of an agent that learns from the expert,
the data store what the expert would have done. Who imitates an expert meets situations that the expert never gets
into: a body that has fallen over, a room that was left by the wrong door.
"""

from typing import SupportsFloat

import numpy as np

from .envs import TaskEnv
from .rollout import Action, Observation, Policy, executable


class StudentActs(TaskEnv):
    """Executes a student's actions in place of some of those that it is given.

    Each episode has its share of such timesteps, drawn from all between 0 and 1, so that the data reach from the
    expert's path to the student's. The seed of its reset decides.

    Args:
        env: from `make_env`.
        student: acts in it.

    Attributes:
        executed: the last action that was executed, None at the start; an expert that has a plan needs to know.
    """

    def __init__(self, env: TaskEnv, student: Policy) -> None:
        super().__init__(env, env.task)
        self.student = student

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        self.rng = np.random.default_rng(None if seed is None else [seed, 2])
        self.share = self.rng.random()
        self.executed: Action | None = None
        observation, info = self.env.reset(seed=seed, options=options)
        self.student.reset(self.env, seed)
        self._seen = observation, None
        return observation, info

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict]:
        of_student = executable(self.student.act(*self._seen), self.action_space)
        self.executed = of_student if self.rng.random() < self.share else action
        observation, reward, *rest = self.env.step(self.executed)
        self._seen = observation, reward
        return observation, reward, *rest
