"""The bot of minigrid: it plans with the whole grid before it, mission by mission.

It keeps a stack of subgoals, and two of its habits never end:

- When it looks for a key and everything in sight is explored, it opens the closest locked door to look behind it, even
  the very door that it needs the key for. Here it explores behind another door.
- In a crowded room it moves two objects out of each other's way for ever, or drops one where another lies. Here it
  notices, puts down what it carries, and begins its plan anew a few random steps away.

What remains are starts that nobody can solve, as when a key lies behind its own door: those are given up. All this
depends on the start and on the seed of the episode, never on the clock: every machine keeps the same starts.
"""

from collections import Counter

import gymnasium
import numpy as np
from minigrid.core.world_object import WorldObj
from minigrid.utils.baby_ai_bot import (
    BabyAIBot,
    DisappearedBoxError,
    DropSubgoal,
    ExploreSubgoal,
    GoNextToSubgoal,
    OpenSubgoal,
    Subgoal,
)

from ..rollout import ExpertGaveUp, Observation
from ..tasks import TaskSpec
from . import MissingExpertError

# The most that an action took in 39 tasks x 50 episodes that ended was 21.
MAX_SUBGOALS_PER_ACTION = 1000
# In 39 tasks x 200 episodes only those that went in circles were thrice in one state.
MAX_VISITS, MAX_NEW_PLANS = 3, 20


class _Explore(ExploreSubgoal):
    """Looks behind a locked door only if no subgoal below is waiting for its key."""

    def replan_before_action(self) -> None:
        waiting = [subgoal.datum for subgoal in self.bot.stack if isinstance(subgoal.datum, WorldObj)]

        def is_locked(position: tuple[int, int], cell: WorldObj | None) -> bool:
            return cell is not None and cell.type == "door" and cell.is_locked and cell not in waiting

        def is_nearer(position: tuple[int, int], cell: WorldObj | None) -> bool:
            """What minigrid's bot explores before it opens a locked door."""
            closed = cell is not None and cell.type == "door" and not cell.is_locked and not cell.is_open
            return closed or not self.bot.vis_mask[position]

        _, nearer, _ = self.bot._shortest_path(is_nearer, try_with_blockers=True)
        if nearer:
            return super().replan_before_action()
        _, position, _ = self.bot._shortest_path(is_locked, try_with_blockers=True)
        if not position:
            raise ExpertGaveUp("the bot has explored all that it can reach")
        door = self.bot.mission.unwrapped.grid.get(*position)
        has_key = self.carrying and (self.carrying.type, self.carrying.color) == ("key", door.color)
        self.bot.stack.pop()
        self.bot.stack.append(OpenSubgoal(self.bot, reason="KeepKey" if has_key else None))
        self.bot.stack.append(GoNextToSubgoal(self.bot, door, reason="Open"))


class _Stack(list):
    """The bot's stack of subgoals. It counts what is pushed, and takes our way of exploring."""

    pushed = 0

    def append(self, subgoal: Subgoal) -> None:
        self.pushed += 1
        if self.pushed > MAX_SUBGOALS_PER_ACTION:
            raise ExpertGaveUp(f"the bot pushed over {MAX_SUBGOALS_PER_ACTION} subgoals without finding an action")
        super().append(_Explore(subgoal.bot) if type(subgoal) is ExploreSubgoal else subgoal)


class BotPolicy:
    """Sees the whole environment, not only the observation."""

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.env, self.outermost = env.unwrapped, env
        self.rng = np.random.default_rng(seed)
        self.new_plans = 0
        self.action: int | None = None
        self._plan()

    def _plan(self) -> None:
        self.bot = BabyAIBot(self.env)
        self.bot.stack = _Stack(self.bot.stack)
        self.visits: Counter[tuple] = Counter()
        self.detour: list[int] = []

    def act(self, observation: Observation, reward: float | None) -> int:
        self.action = self._next_action(getattr(self.outermost, "executed", self.action))
        return self.action

    def _next_action(self, executed: int | None) -> int:
        """By the plan, or by the detour while there is one.

        Args:
            executed: the last action that was, which may have been a student's.
        """
        is_own = executed == self.action
        if not is_own:
            self.detour = []
        if not self.detour:
            state = self._state()
            self.visits[state] += is_own  # the circles that a student goes in are not the bot's
            if self.visits[state] <= MAX_VISITS:
                self.bot.stack.pushed = 0
                try:
                    return int(self.bot.replan(None if is_own else executed))
                except DisappearedBoxError as error:  # what was in the box may be what the mission is about
                    raise ExpertGaveUp(str(error)) from error
                except AssertionError:  # what the bot holds for certain is not so
                    pass
            self._plan_anew()
        self.bot._remember_current_state()  # to compare with what comes of it, as it does itself when it plans
        return self.detour.pop()

    def _state(self) -> tuple:
        """All that changes in an episode but time; the bot does not come back to it again and again."""
        env, carrying = self.env, self.env.carrying
        cells = enumerate(env.grid.grid)
        things = tuple((place, *cell.encode()) for place, cell in cells if cell and cell.type != "wall")
        return *env.agent_pos, env.agent_dir, carrying and carrying.encode(), things

    def _plan_anew(self) -> None:
        self.new_plans += 1
        if self.new_plans > MAX_NEW_PLANS:
            raise ExpertGaveUp(f"the bot began its plan anew {MAX_NEW_PLANS} times and went in circles again")
        explored = self.bot.vis_mask
        self._plan()
        self.bot.vis_mask = explored
        if self.env.carrying:
            self.bot.stack.append(DropSubgoal(self.bot))
            self.bot.stack.append(GoNextToSubgoal(self.bot, self.bot._find_drop_pos()))
        actions = self.env.actions
        self.detour = [int(action) for action in self.rng.choice([actions.left, actions.right, actions.forward], 6)]


def load(task: TaskSpec) -> BotPolicy:
    if task.domain != "babyai":
        raise MissingExpertError(f"the bot plays BabyAI only, not {task.name}")
    return BotPolicy()
