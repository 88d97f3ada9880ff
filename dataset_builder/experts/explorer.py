"""An explorer for games of Atari whose reward comes late: it searches the emulator first, then plays the best it found.

The first phase of Go-Explore (Ecoffet et al. 2021, Nature 590). An archive keeps one state of the emulator for
everything that the screen, made very small, has shown. Again and again one of the seldom visited is returned to and
explored from by chance; what is new, or reached with a higher score or sooner, goes into the archive. The budget is
counted in emulator steps, never in seconds: the same seed gives the same game.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium
import numpy as np

from ..envs.atari import FRAMES_PER_STEP
from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError

CELL_SIZE, CELL_LEVELS = (11, 8), 8  # width and height, and shades of gray


@dataclass
class _Cell:
    """The best way known to something that the screen shows."""

    state: Any
    actions: bytes  # indices of legal actions, from the start of the game
    score: float
    visits: int = 0


class ExplorerPolicy:
    """Searches when the game begins, on the very emulator that it plays, which it puts back as it was.

    Args:
        budget: emulator steps of the search.
        length: timesteps of an exploration; the loss of a life ends it.
        hold: probability that an action is repeated.
    """

    def __init__(self, budget: int = 1_000_000, length: int = 100, hold: float = 0.9) -> None:
        self.budget, self.length, self.hold = budget, length, hold

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.ale = env.unwrapped.ale
        self.legal_actions = self.ale.getMinimalActionSet()
        self.screen = np.empty(self.ale.getScreenDims(), np.uint8)
        self.rng = np.random.default_rng(seed)
        root = self.ale.cloneState()
        best = self._search(_Cell(root, b"", 0.0), env.task.horizon)
        self.ale.restoreState(root)
        self.plan = iter(best.actions)

    def act(self, observation: Observation, reward: float | None) -> int:
        return next(self.plan, 0)  # idle once the plan is played

    def _search(self, start: _Cell, horizon: int) -> _Cell:
        """The cell with the highest score, reached the soonest."""
        cells, weights = [start], np.ones(1)  # the weights, by which a cell is chosen, have room for more
        places = {self._key(): 0}  # of the cells in the list, by what the screen shows
        spent = 0
        while spent < self.budget:
            totals = weights[: len(cells)].cumsum()
            chosen = int(totals.searchsorted(self.rng.random() * totals[-1]))
            cells[chosen].visits += 1
            spent += 1  # for the timestep that yields nothing, if a life ends it
            weights[chosen] = (cells[chosen].visits + 1) ** -0.5
            for key, actions, score in self._explore(cells[chosen], horizon):
                spent += 1
                place = places.setdefault(key, len(cells))
                if place == len(cells):
                    cells.append(_Cell(self.ale.cloneState(), bytes(actions), score))
                    if len(weights) < len(cells):
                        weights = np.append(weights, np.ones_like(weights))
                elif (score, -len(actions)) > (cells[place].score, -len(cells[place].actions)):
                    cells[place], weights[place] = _Cell(self.ale.cloneState(), bytes(actions), score), 1.0
        return max(cells, key=lambda cell: (cell.score, -len(cell.actions)))

    def _explore(self, cell: _Cell, horizon: int) -> Iterator[tuple[bytes, bytearray, float]]:
        """Play on by chance; yields what the screen shows, the actions so far and the score after every timestep."""
        self.ale.restoreState(cell.state)
        actions, score, lives = bytearray(cell.actions), cell.score, self.ale.lives()
        action = 0
        for t in range(min(self.length, horizon - len(actions))):
            if t == 0 or self.rng.random() > self.hold:
                action = int(self.rng.integers(len(self.legal_actions)))
            score += sum(self.ale.act(self.legal_actions[action]) for _ in range(FRAMES_PER_STEP))
            actions.append(action)
            if self.ale.lives() < lives or self.ale.game_over():
                return
            yield self._key(), actions, score

    def _key(self) -> bytes:
        self.ale.getScreenGrayscale(self.screen)
        small = cv2.resize(self.screen, CELL_SIZE, interpolation=cv2.INTER_AREA)
        return (small // (256 // CELL_LEVELS)).tobytes()


def load(task: TaskSpec) -> ExplorerPolicy:
    if task.domain != "atari":
        raise MissingExpertError(f"the explorer needs an Atari emulator, {task.name} has none")
    return ExplorerPolicy()
