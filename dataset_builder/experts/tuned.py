"""The scripted policies of Meta-World in a hurry: functions of the observation as before, that earn more in less time.

A script slows down within ten centimetres of where it goes, and waits until it is there. Here the velocity that it asks
for is multiplied by a gain and shifted by an offset, of each direction: numbers that `examples/tune_scripts.py` found
for each task. Some stop a little beside what the script aims at, where the reward is higher.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np

from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError
from .scripted import ScriptedPolicy
from .scripted import load as load_script

TUNING = Path(__file__).parent / "weights" / "tuned_scripts.json"


class TunedPolicy:
    """A script, its velocities changed.

    Args:
        script: the policy.
        gains: by which the velocity is multiplied, (3,).
        offsets: which are added to it, (3,), in shares of the hand's largest velocity.
    """

    def __init__(self, script: ScriptedPolicy, gains: Sequence[float], offsets: Sequence[float]) -> None:
        self.script, self.gains, self.offsets = script, np.array(gains), np.array(offsets)

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.script.reset(env, seed)

    def act(self, observation: Observation, reward: float | None) -> np.ndarray:
        *velocity, effort = self.script.act(observation, reward)
        return np.append(velocity * self.gains + self.offsets, effort)


@cache
def read_tuning() -> dict[str, dict[str, list[float]]]:
    return json.loads(TUNING.read_text())


def load(task: TaskSpec) -> TunedPolicy:
    if task.name not in read_tuning():
        raise MissingExpertError(
            f"{task.name} has no tuned script: tune one with `python examples/tune_scripts.py --tasks {task.name}`, "
            "or build with another expert"
        )
    return TunedPolicy(load_script(task), **read_tuning()[task.name])
