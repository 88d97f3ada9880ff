"""The random policy, by which scores are normalised."""

import gymnasium

from ..rollout import Action, Observation
from ..tasks import TaskSpec


class RandomPolicy:
    """Samples the action space, from the seed of the episode."""

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.action_space = env.action_space
        self.action_space.seed(seed)

    def act(self, observation: Observation, reward: float | None) -> Action:
        return self.action_space.sample()


def load(task: TaskSpec) -> RandomPolicy:
    return RandomPolicy()
