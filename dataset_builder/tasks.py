"""The one table: 157 tasks that have an environment, and 4 text subsets.

Everything else asks this table. Adding a task is adding a row, here or with `register_task`.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

DOMAINS = ("atari", "babyai", "metaworld", "mujoco", "text")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task.

    Args:
        name: unique name, also the name of the data set's configuration, such as "metaworld-reach".
        env_id: id that the domain understands (a gymnasium id for most), or the source data set for text.
        instruction: the task in plain words, used as the text prompt. BabyAI's missions say more: they change with
            every episode and are part of the observation.
        domain: the module of `dataset_builder.envs` that makes the environment, or "text".
        columns: the columns of the data set, in order. Observations and actions are named as the keys of the
            environment's observation, in the plural. `register_task` asks the environment for them.
        expert: name of the kind of expert in `dataset_builder.experts`, or the expert itself: a function from
            observation to action, a `Policy`, or a class of policies. None where there is none.
        horizon: most timesteps in an episode; None where the environment sets it anew for every episode.
        score_horizon: number of first timesteps whose rewards the published scores sum; None for all of them.
    """

    name: str
    env_id: str
    instruction: str
    domain: str = "custom"
    columns: tuple[str, ...] = ()
    expert: str | Callable | None = None
    horizon: int | None = None
    score_horizon: int | None = None

    @property
    def expert_name(self) -> str | None:
        """The expert as manifests and cards name it: its kind, or where its code is."""
        if self.expert is None or isinstance(self.expert, str):
            return self.expert
        code = self.expert if hasattr(self.expert, "__qualname__") else type(self.expert)
        # A script is a module of another name in the processes that it starts.
        return f"{code.__module__}.{code.__qualname__}".replace("__mp_main__", "__main__")

    @cached_property
    def has_images(self) -> bool:
        return "image_observations" in self.columns

    def described(self) -> dict[str, Any]:
        """The row without its expert, as manifests hold it."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in fields(self)
            if field.name != "expert"
        }

    @classmethod
    def from_description(cls, described: dict[str, Any]) -> "TaskSpec":
        return cls(**{**described, "columns": tuple(described["columns"])})

    @cached_property
    def observation_keys(self) -> tuple[str, ...]:
        """Keys of the environment's observation: the observation columns in the singular."""
        return tuple(column.removesuffix("s") for column in self.columns if column.endswith("_observations"))

    @cached_property
    def action_column(self) -> str | None:
        """The column of the actions, None for text."""
        return next((column for column in self.columns if column.endswith("_actions")), None)


# ALE's names. A task's name is the lower-case one; the words of the instruction are split at capitals.
_ATARI = """
    Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider Berzerk Bowling Boxing Breakout
    Centipede ChopperCommand CrazyClimber Defender DemonAttack DoubleDunk Enduro FishingDerby Freeway Frostbite Gopher
    Gravitar Hero IceHockey Jamesbond Kangaroo Krull KungFuMaster MontezumaRevenge MsPacman NameThisGame Phoenix Pitfall
    Pong PrivateEye Qbert Riverraid RoadRunner Robotank Seaquest Skiing Solaris SpaceInvaders StarGunner Surround Tennis
    TimePilot Tutankham UpNDown Venture VideoPinball WizardOfWor YarsRevenge Zaxxon
""".split()

# Games whose expert is a network of the package; of the others it is the planner, whose actions cannot be imitated.
_LEARNT = """
    Assault Atlantis BankHeist Boxing Breakout CrazyClimber DemonAttack Freeway Gopher Jamesbond Krull KungFuMaster
    NameThisGame Phoenix Pong Qbert RoadRunner SpaceInvaders Tutankham UpNDown
""".split()

# name, minigrid id, instruction
_BABYAI = [
    ("action-obj-door", "ActionObjDoor", "go to, pick up or open the object or door of the mission"),
    (
        "blocked-unlock-pickup",
        "BlockedUnlockPickup",
        "move the ball that blocks the door, unlock it and pick up the box",
    ),
    ("boss-level-no-unlock", "BossLevelNoUnlock", "follow a long mission in a maze without locked doors"),
    ("boss-level", "BossLevel", "follow a long mission in a maze"),
    ("find-obj-s5", "FindObjS5", "find an object in one of the rooms and pick it up"),
    ("go-to-door", "GoToDoor", "go to the door of the given color"),
    ("go-to-imp-unlock", "GoToImpUnlock", "go to an object that may be behind a locked door"),
    ("go-to-local", "GoToLocal", "go to an object in this room"),
    ("go-to-obj-door", "GoToObjDoor", "go to an object or a door in this room"),
    ("go-to-obj", "GoToObj", "go to the only object"),
    ("go-to-red-ball-grey", "GoToRedBallGrey", "go to the red ball among grey objects"),
    ("go-to-red-ball-no-dists", "GoToRedBallNoDists", "go to the red ball, the only object"),
    ("go-to-red-ball", "GoToRedBall", "go to the red ball among other objects"),
    ("go-to-red-blue-ball", "GoToRedBlueBall", "go to the red or the blue ball"),
    ("go-to-seq", "GoToSeq", "go to several objects in the given order"),
    ("go-to", "GoTo", "go to an object somewhere in the maze"),
    ("key-corridor", "KeyCorridor", "find the key, unlock the door and pick up the ball"),
    ("mini-boss-level", "MiniBossLevel", "follow a long mission in a small maze"),
    ("move-two-across-s8n9", "MoveTwoAcrossS8N9", "put two objects next to others in the other room"),
    ("one-room-s8", "OneRoomS8", "pick up the ball in one room"),
    ("open-door", "OpenDoor", "open the door of the given color or place"),
    ("open-doors-order-n4", "OpenDoorsOrderN4", "open doors in the given order"),
    ("open-red-door", "OpenRedDoor", "open the red door"),
    ("open-two-doors", "OpenTwoDoors", "open two doors, one after the other"),
    ("open", "Open", "open a door somewhere in the maze"),
    ("pickup-above", "PickupAbove", "pick up an object in the room above"),
    ("pickup-dist", "PickupDist", "pick up an object among others"),
    ("pickup-loc", "PickupLoc", "pick up an object that is described by its place"),
    ("pickup", "Pickup", "pick up an object somewhere in the maze"),
    ("put-next-local", "PutNextLocal", "put one object next to another in this room"),
    ("put-next", "PutNextS7N4", "put an object of this room next to one of the other room"),
    ("synth-loc", "SynthLoc", "follow a mission of one instruction that may name places"),
    ("synth-seq", "SynthSeq", "follow a mission of several instructions in order"),
    ("synth", "Synth", "follow a mission of one instruction"),
    ("unblock-pickup", "UnblockPickup", "pick up an object, moving what blocks the way"),
    ("unlock-local", "UnlockLocal", "take the key and open the locked door of this room"),
    ("unlock-pickup", "UnlockPickup", "unlock the door and pick up the box behind it"),
    ("unlock-to-unlock", "UnlockToUnlock", "unlock a door to reach the key of another and pick up the ball"),
    ("unlock", "Unlock", "find the key and open the locked door"),
]

# name (with "-v3" the Meta-World id), instruction
_METAWORLD = {
    "assembly": "pick up the nut and place it onto the peg",
    "basketball": "dunk the basketball into the hoop",
    "bin-picking": "move the puck from one bin into the other",
    "box-close": "pick up the lid and close the box with it",
    "button-press-topdown-wall": "go over the wall and press the button from above",
    "button-press-topdown": "press the button from above",
    "button-press-wall": "go around the wall and press the button",
    "button-press": "press the button",
    "coffee-button": "push the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the nut off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door by turning the lock clockwise",
    "door-open": "open the door",
    "door-unlock": "unlock the door by turning the lock counter-clockwise",
    "drawer-close": "push the drawer shut",
    "drawer-open": "open the drawer",
    "faucet-close": "close the faucet",
    "faucet-open": "open the faucet",
    "hammer": "hammer the nail into the wall",
    "hand-insert": "insert the hand into the hole",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever down until it points up",
    "peg-insert-side": "insert the peg into the hole from the side",
    "peg-unplug-side": "unplug the peg from the side",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place-wall": "pick up the puck, carry it over the wall and place it at the goal",
    "pick-place": "pick up the puck and place it at the goal",
    "plate-slide-back-side": "pull the plate out of the cabinet sideways",
    "plate-slide-back": "pull the plate back out of the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide": "slide the plate into the cabinet",
    "push-back": "pull the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "push": "push the puck to the goal",
    "reach-wall": "go around the wall and reach the goal",
    "reach": "reach the goal",
    "shelf-place": "pick up the block and place it on the shelf",
    "soccer": "kick the ball into the goal",
    "stick-pull": "grasp the stick and pull the thermos with it",
    "stick-push": "grasp the stick and push the thermos with it",
    "sweep-into": "sweep the puck into the hole",
    "sweep": "sweep the puck off the table",
    "window-close": "slide the window shut",
    "window-open": "slide the window open",
}

# name, gymnasium id, horizon, instruction. The -v4 ids have the observations of the published data, -v5 others;
# Pusher-v4 does not run on MuJoCo 3, and Pusher-v5 is the same task.
_MUJOCO = [
    ("ant", "Ant-v4", 1000, "make the four-legged ant walk forward"),
    ("doublependulum", "InvertedDoublePendulum-v4", 1000, "balance the double pendulum on the cart"),
    ("halfcheetah", "HalfCheetah-v4", 1000, "make the cheetah run forward"),
    ("hopper", "Hopper-v4", 1000, "make the one-legged hopper hop forward"),
    ("humanoid", "Humanoid-v4", 1000, "make the humanoid walk forward"),
    ("pendulum", "InvertedPendulum-v4", 1000, "balance the pendulum on the cart"),
    ("pusher", "Pusher-v5", 100, "push the cylinder to the goal with the arm"),
    ("reacher", "Reacher-v4", 50, "reach the goal with the tip of the arm"),
    ("standup", "HumanoidStandup-v4", 1000, "make the humanoid stand up"),
    ("swimmer", "Swimmer-v4", 1000, "make the swimmer swim forward"),
    ("walker", "Walker2d-v4", 1000, "make the two-legged walker walk forward"),
]

# name, source data set, columns
_TEXT = [
    ("conceptual-captions", "google-research-datasets/conceptual_captions", ("images", "text")),
    ("ok-vqa", "Multimodal-Fatima/OK-VQA_train", ("images", "text")),
    ("oscar", "oscar-corpus/OSCAR-2301", ("text",)),
    ("wikipedia", "wikimedia/wikipedia", ("text",)),
]


def _words(camel_case: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", camel_case)


def _published_tasks() -> Iterable[TaskSpec]:
    for game in _ATARI:
        yield TaskSpec(
            name=f"atari-{game.lower()}",
            domain="atari",
            env_id=f"ALE/{game}-v5",
            instruction=f"play {_words(game)}",
            columns=("image_observations", "discrete_actions", "rewards"),
            expert="network" if game in _LEARNT else "planner",
            horizon=27_000,  # 108,000 frames, four a timestep
        )
    for name, env_id, instruction in _BABYAI:
        yield TaskSpec(
            name=f"babyai-{name}",
            domain="babyai",
            env_id=f"BabyAI-{env_id}-v0",
            instruction=instruction,
            columns=("text_observations", "discrete_observations", "discrete_actions", "rewards"),
            expert="bot",
        )
    for name, instruction in _METAWORLD.items():
        yield TaskSpec(
            name=f"metaworld-{name}",
            domain="metaworld",
            env_id=f"{name}-v3",
            instruction=instruction,
            columns=("continuous_observations", "continuous_actions", "rewards"),
            expert="scripted",
            horizon=500,
            score_horizon=100,
        )
    for name, env_id, horizon, instruction in _MUJOCO:
        yield TaskSpec(
            name=f"mujoco-{name}",
            domain="mujoco",
            env_id=env_id,
            instruction=instruction,
            columns=("continuous_observations", "continuous_actions", "rewards"),
            expert="network",
            horizon=horizon,
        )
    for name, source, columns in _TEXT:
        yield TaskSpec(name=name, domain="text", env_id=source, instruction="", columns=columns)


_TASKS: dict[str, TaskSpec] = {task.name: task for task in _published_tasks()}


def register_task(task: TaskSpec) -> TaskSpec:
    """Add a row for a task of your own; it is then made, built, published, trained and evaluated like the others.

    register_task(TaskSpec(name="cartpole", env_id="CartPole-v1", instruction="balance the pole", expert=policy))

    Returns:
        The row as it was added, with the columns that its environment has.

    Raises:
        ValueError: if the name is taken or not fit for a folder, or the environment has spaces that JAT does not know.
    """
    if task.name in _TASKS:
        raise ValueError(f"a task named {task.name!r} exists already: choose another name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", task.name):
        raise ValueError(
            f"a task's name is also a folder's and a configuration's: expected lower-case letters, digits, '-', '_' "
            f"and '.', got {task.name!r}"
        )
    if not task.columns:
        envs = importlib.import_module(".envs", __package__)  # the one place where the table asks the world
        task = replace(task, columns=envs.task_columns(task))
    _TASKS[task.name] = task
    return task


def register_from(source: str) -> None:
    """Run a module, or a file, that registers tasks: what the option `--register` of the commands does.

    Raises:
        ValueError: if there is no such module or file.
    """
    path = Path(source)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"there is no file {path}: expected a module, or a file, that calls register_task")
        # As a module with a name, so that worker processes find it too.
        sys.path.insert(0, str(path.parent.resolve()))
        source = path.stem
    try:
        importlib.import_module(source)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {source!r} ({error}): expected one that calls register_task") from error


def get_task(name: str) -> TaskSpec:
    """The row of one task.

    Raises:
        ValueError: if there is no such task; the message holds the nearest names.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}. {_nearest(name)}")
    return _TASKS[name]


def select_tasks(patterns: str | Iterable[str] = "all") -> list[TaskSpec]:
    """The tasks that any pattern names, in the order of the table, each once.

    Args:
        patterns: one or more of: "all" (every task with an environment), a domain ("metaworld", "text"), a name
            ("mujoco-ant"), or a glob ("babyai-go-to-*").

    Raises:
        ValueError: if a pattern names no task; the message holds the nearest names.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    selected = set()
    for pattern in patterns:
        matches = {task.name for task in _TASKS.values() if _matches(task, pattern)}
        if not matches:
            raise ValueError(f"no task matches {pattern!r}. {_nearest(pattern)}")
        selected |= matches
    return [task for task in _TASKS.values() if task.name in selected]


def _matches(task: TaskSpec, pattern: str) -> bool:
    if pattern == "all":
        return task.domain != "text"
    return pattern in (task.domain, task.name) or fnmatchcase(task.name, pattern)


def _nearest(name: str) -> str:
    domains = sorted({task.domain for task in _TASKS.values()})
    nearest = get_close_matches(name, [*_TASKS, *domains], n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(nearest)}? " if nearest else ""
    expected = f"Expected a task's name, a glob, 'all' or a domain ({', '.join(domains)})"
    return f"{hint}{expected}; see `python -m dataset_builder list`. A task of your own is registered first."
