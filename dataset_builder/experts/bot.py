"""The bot of minigrid: it plans with the whole grid before it, mission by mission.

From some starts its planning never ends: it pushes and drops the same subgoals for ever. Its work is therefore
bounded, by the number of subgoals pushed for one action, never by the clock: the same starts are given up on every
machine.
"""

import gymnasium
from minigrid.utils.baby_ai_bot import BabyAIBot

from ..rollout import ExpertGaveUp, Observation
from ..tasks import TaskSpec
from . import MissingExpertError

# The most that an action took in 39 tasks x 50 episodes that ended was 21.
MAX_SUBGOALS_PER_ACTION = 1000


class _BoundedStack(list):
    """The bot's stack of subgoals, which counts what is pushed."""

    pushed = 0

    def append(self, subgoal: object) -> None:
        self.pushed += 1
        if self.pushed > MAX_SUBGOALS_PER_ACTION:
            raise ExpertGaveUp(f"the bot pushed over {MAX_SUBGOALS_PER_ACTION} subgoals without finding an action")
        super().append(subgoal)


class BotPolicy:
    """Sees the whole environment, not only the observation."""

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.bot = BabyAIBot(env)
        self.bot.stack = _BoundedStack(self.bot.stack)

    def act(self, observation: Observation, reward: float | None) -> int:
        self.bot.stack.pushed = 0
        return int(self.bot.replan())


def load(task: TaskSpec) -> BotPolicy:
    if task.domain != "babyai":
        raise MissingExpertError(f"the bot plays BabyAI only, not {task.name}")
    return BotPolicy()
