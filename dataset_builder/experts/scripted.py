"""The scripted policies of Meta-World, one for each of its 50 tasks: functions of the observation.

Six of metaworld's scripts fail on 5 to 16 of 100 starts; `REPAIRED` holds what stands in for them here. Five closed the
gripper while the hand was still coming down, and were stuck above the object for ever; these grasp in order, with
`_grasp`. stick-pull steered the hand rather than what the stick pulls.
"""

import warnings
from collections.abc import Callable

import gymnasium
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError

# Some scripts ask for more than the arm can do; the rollout clips their actions as the environment would.
warnings.filterwarnings("ignore", message="Constant.* may be too high", module="metaworld.policies")

OPEN, CLOSE = -1.0, 1.0  # effort of the gripper
GAIN = 25.0  # of the hand's velocity in the distance to where it goes, in 1/m

# A script that stands in for one of metaworld's: from an observation (39 values) to where the hand goes (x, y, z in
# metres) and the effort of the gripper.
Script = Callable[[np.ndarray], tuple[np.ndarray, float]]


def _grasp(
    observation: np.ndarray,
    grip: np.ndarray,
    *,
    height: float = 0.08,
    precision: float = 0.02,
    reach: float = 0.03,
    closed: float = 0.6,
    slack: float = 0.06,
) -> tuple[np.ndarray, float] | None:
    """The next move of a hand that grasps: over the object, down, and only then close. None once it holds.

    Args:
        observation: of the environment.
        grip: where the hand has to be to close around the object.
        height: above the object at which the hand comes near.
        precision: how far the hand may be to the side before it goes down.
        reach: how far it may be above when it closes.
        closed: opening of the gripper, from 0 to 1, at which it holds the object.
        slack: how far to the side the object may be in the closing hand.
    """
    hand, opening = observation[:3], observation[3]
    aside, above = float(np.linalg.norm(hand[:2] - grip[:2])), hand[2] - grip[2]
    is_closing = opening < closed + 0.15 and aside < slack and above < reach + 0.02
    if not is_closing:
        if aside > precision:
            is_low_or_far = above < height / 2 or aside > 0.1
            return np.array([*grip[:2], grip[2] + height if is_low_or_far else hand[2]]), OPEN
        if above > reach:
            return grip, OPEN
    return (grip, CLOSE) if opening > closed else None


def _insert_peg(observation: np.ndarray) -> tuple[np.ndarray, float]:
    peg = observation[4:7]
    hole = np.array([-0.35, observation[-2], 0.16])
    before_hole = hole + np.array([0.4, 0, 0])
    is_aligned = np.linalg.norm(peg[1:] - hole[1:]) < 0.03
    return _grasp(observation, peg, closed=0.5) or (hole if is_aligned else before_hole, CLOSE)


def _sweep_into(observation: np.ndarray) -> tuple[np.ndarray, float]:
    grip = observation[4:7] + np.array([-0.005, 0, 0.01])
    return _grasp(observation, grip, reach=0.045, closed=0.75) or (observation[-3:], CLOSE)


def _close_box(observation: np.ndarray) -> tuple[np.ndarray, float]:
    hand, box = observation[:3], np.array([*observation[-3:-1], 0.15])
    lid = observation[4:7] + np.array([0, 0, 0.02])
    up = np.array([*hand[:2], box[2]])
    is_up = abs(hand[2] - box[2]) < 0.04
    # The lid bounces at the start: the hand keeps well above it.
    return _grasp(observation, lid, height=0.25, precision=0.01, reach=0.05) or (box if is_up else up, CLOSE)


def _place_on_shelf(observation: np.ndarray) -> tuple[np.ndarray, float]:
    hand, shelf, height = observation[:3], observation[-3:], 0.33
    block = observation[4:7] + np.array([-0.005, 0, 0.015])
    is_before = abs(hand[0] - shelf[0]) < 0.02 and hand[2] > height - 0.03
    is_above = hand[1] > shelf[1] - 0.05
    forward = shelf[1] if is_before or is_above else hand[1]
    return _grasp(observation, block) or (np.array([shelf[0], forward, height]), CLOSE)


def _carry_ball(observation: np.ndarray) -> tuple[np.ndarray, float]:
    goal = np.array([*observation[-3:-1], 0.03])
    return _grasp(observation, observation[4:7], reach=0.035, closed=0.75, slack=0.05) or (goal, CLOSE)


class _RepairedScript:
    """A script in metaworld's form."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def get_action(self, observation: np.ndarray) -> np.ndarray:
        destination, effort = self.script(observation)
        return np.append(GAIN * (destination - observation[:3]), effort)


class _StickPull(ENV_POLICY_MAP["stick-pull-v3"]):
    """Once the stick is in the thermos' handle, moves the hand by what the thermos lacks to the goal."""

    def get_action(self, observation: np.ndarray) -> np.ndarray:
        action = super().get_action(observation)
        stick, thermos, goal = observation[4:7], observation[11:14], observation[-3:]
        if abs(stick[0] - thermos[0]) <= 0.04:
            action[:3] = GAIN * (goal - thermos) * [1, 1, 0]
        return action


REPAIRED = {
    "peg-insert-side-v3": lambda: _RepairedScript(_insert_peg),
    "sweep-into-v3": lambda: _RepairedScript(_sweep_into),
    "box-close-v3": lambda: _RepairedScript(_close_box),
    "shelf-place-v3": lambda: _RepairedScript(_place_on_shelf),
    "soccer-v3": lambda: _RepairedScript(_carry_ball),
    "stick-pull-v3": _StickPull,
}


class ScriptedPolicy:
    """Meta-World's script for one environment, or what stands in for it."""

    def __init__(self, env_id: str) -> None:
        self.make_script = REPAIRED.get(env_id) or ENV_POLICY_MAP[env_id]

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.script = self.make_script()

    def act(self, observation: Observation, reward: float | None) -> np.ndarray:
        return self.script.get_action(observation["continuous_observation"].astype(np.float64))


def load(task: TaskSpec) -> ScriptedPolicy:
    if task.env_id not in ENV_POLICY_MAP:
        raise MissingExpertError(f"metaworld has no scripted policy for {task.name} ({task.env_id})")
    return ScriptedPolicy(task.env_id)
