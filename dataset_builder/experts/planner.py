"""A planner for Atari that needs no training: it tries plans on the emulator and follows the best.

Rolling-horizon evolution (Perez et al. 2013; Gaina et al. 2017): one plan of actions is kept, mutated and shifted as it
is executed. A mutation at step t restarts the emulator from a saved state just before t, so that only the tail of the
plan is played again, and no more than the beginning of that if it is worse. The budget is counted in emulator steps,
never in seconds: the same seed gives the same game.

Its games score high but cannot be imitated as they are: most of its actions are one of many equally good ones, chosen
by chance, and no function of what the screen shows.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from ..envs.atari import FRAMES_PER_STEP
from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError


@dataclass(frozen=True)
class _Outcome:
    """What a plan, or its beginning, leads to. Lives come before reward."""

    lives_lost: int = 0
    value: float = 0.0  # discounted return

    def __ge__(self, other: "_Outcome") -> bool:
        return (-self.lives_lost, self.value) >= (-other.lives_lost, other.value)


@dataclass(frozen=True)
class _Plan:
    actions: np.ndarray  # indices of legal actions, one a timestep
    states: tuple[Any, ...]  # emulator states before timesteps 0, n, 2n, ... of the plan, n = save_every
    outcomes: tuple[_Outcome, ...]  # what the plan led to until there
    outcome: _Outcome

    def outcome_before(self, index: int) -> _Outcome:
        """What it led to until a saved state, or until the game was over before that."""
        return self.outcomes[index] if index < len(self.outcomes) else self.outcome


class PlannerPolicy:
    """Plans on the very emulator that it plays, which it puts back as it was.

    Args:
        horizon: timesteps of a plan.
        budget: emulator steps for every decision; up to `danger_factor` times as many while the plan loses a life or
            more reward than it gains.
        save_every: timesteps between the saved states of a plan; so many are executed before the next decision.
        patience: timesteps after which a mutation is given up as soon as it is behind the plan.
        discount: of rewards within a plan, so that sooner is better.
    """

    def __init__(
        self,
        horizon: int = 100,
        budget: int = 150,
        save_every: int = 5,
        patience: int = 20,
        discount: float = 0.995,
        danger_factor: int = 6,
    ) -> None:
        self.horizon, self.budget, self.save_every, self.patience = horizon, budget, save_every, patience
        self.discount, self.danger_factor = discount, danger_factor

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.ale = env.unwrapped.ale
        self.legal_actions = self.ale.getMinimalActionSet()
        self.rng = np.random.default_rng(seed)
        self.plan: _Plan | None = None
        self.timestep = 0

    def act(self, observation: Observation, reward: float | None) -> int:
        position = self.timestep % self.save_every
        if position == 0:
            self.plan = self._decide()
        self.timestep += 1
        return int(self.plan.actions[position])

    def _decide(self) -> _Plan:
        """Mutate what is left of the last plan until the budget is spent; the emulator is left as it was found."""
        root = self.ale.cloneState()
        plan, spent = self._continue(root)
        while spent < self.budget or (self._in_danger(plan) and spent < self.budget * self.danger_factor):
            saved = int(self.rng.integers(len(plan.states)))
            start = saved * self.save_every
            actions = np.concatenate([plan.actions[:start], self._mutate(plan.actions[start:])])
            mutant, steps = self._simulate(actions, plan.states[: saved + 1], plan.outcomes[: saved + 1], rival=plan)
            spent += steps
            # An equal one is taken too: drifting keeps the search from standing still.
            if mutant.outcome >= plan.outcome:
                plan = mutant
        self.ale.restoreState(root)
        return plan

    def _in_danger(self, plan: _Plan) -> bool:
        return plan.outcome.lives_lost > 0 or plan.outcome.value < 0

    def _continue(self, root: Any) -> tuple[_Plan, int]:
        """The last plan less what was executed, with new actions at its end; or a random one at the start."""
        if self.plan is None or len(self.plan.states) < 2:
            return self._simulate(self._hold_actions(self.horizon), (root,), (_Outcome(),))
        executed, *saved = self.plan.outcomes[1:]
        outcomes = [
            _Outcome(
                later.lives_lost - executed.lives_lost, (later.value - executed.value) / self.discount**self.save_every
            )
            for later in saved
        ]
        actions = np.concatenate([self.plan.actions[self.save_every :], self._hold_actions(self.save_every)])
        return self._simulate(actions, (root, *self.plan.states[2:]), (_Outcome(), *outcomes))

    def _simulate(
        self,
        actions: np.ndarray,
        states: tuple[Any, ...],
        outcomes: tuple[_Outcome, ...],
        rival: _Plan | None = None,
    ) -> tuple[_Plan, int]:
        """Play a plan on from its last saved state; its rival is returned instead as soon as it is behind that.

        Also returns how many emulator steps that took.
        """
        self.ale.restoreState(states[-1])
        start = (len(states) - 1) * self.save_every
        lives_lost, value, lives = outcomes[-1].lives_lost, outcomes[-1].value, self.ale.lives()
        states, outcomes = list(states), list(outcomes)
        for t in range(start, self.horizon):
            if t % self.save_every == 0 and t > start:
                outcome = _Outcome(lives_lost, value)
                if rival and t >= start + self.patience and not outcome >= rival.outcome_before(t // self.save_every):
                    return rival, t - start
                states.append(self.ale.cloneState())
                outcomes.append(outcome)
            action = self.legal_actions[actions[t]]
            value += self.discount**t * sum(self.ale.act(action) for _ in range(FRAMES_PER_STEP))
            lives_lost += max(0, lives - self.ale.lives())
            lives = self.ale.lives()
            if self.ale.game_over():
                break
        return _Plan(actions, tuple(states), tuple(outcomes), _Outcome(lives_lost, value)), t + 1 - start

    def _mutate(self, actions: np.ndarray) -> np.ndarray:
        """Hold one action for a while, or replace everything by new holds."""
        if self.rng.random() < 0.5:
            return self._hold_actions(len(actions))
        mutated = actions.copy()
        begin = int(self.rng.integers(self.save_every))
        mutated[begin : begin + self._hold_length()] = self.rng.integers(len(self.legal_actions))
        return mutated

    def _hold_actions(self, timesteps: int) -> np.ndarray:
        """Random actions, each held for a random time."""
        actions = np.empty(timesteps, np.int64)
        t = 0
        while t < timesteps:
            length = self._hold_length()
            actions[t : t + length] = self.rng.integers(len(self.legal_actions))
            t += length
        return actions

    def _hold_length(self) -> int:
        """A few timesteps, about ten, or dozens: games differ in what an action takes to matter."""
        return int(self.rng.geometric(self.rng.choice([0.3, 0.1, 0.02])))


def load(task: TaskSpec) -> PlannerPolicy:
    if task.domain != "atari":
        raise MissingExpertError(f"the planner needs an Atari emulator, {task.name} has none")
    return PlannerPolicy()
