"""Text subsets of your own, made from the environments: what frames show, and missions.

    python -m dataset_builder build --register examples/captions.py --tasks game-captions view-captions missions \\
        --episodes 20000 --output data
    python examples/train.py --register examples/captions.py --data data --output jat --config image_size=112

game-captions: frames of Atari games with the game's name and the lives left, "Breakout, 5 lives left".

view-captions: views of BabyAI levels with what is where, nearest first, "a red ball 2 ahead 1 left, an open blue door 4
ahead". A view is 7x7 cells of 16x16 pixels: in a model of image_size 112 each cell is a patch.

missions: those of BabyAI, "put the green ball next to the red box, then open a grey door".
"""

import io
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import gymnasium
import numpy as np
from datasets import IterableDataset
from PIL import Image

from dataset_builder import make_env, select_tasks
from dataset_builder.envs.atari import FRAMES_PER_STEP
from dataset_builder.rollout import episode_seed
from dataset_builder.text import Source, register_text

# A part is a function of its number: a build goes on with the next one.
SEED, PARTS, ROWS_PER_PART = 0, 20_000, 8
TILE_SIZE = 16  # pixels
LONGEST_PLAY, LONGEST_WALK = 1000, 20  # timesteps before a frame; of a game, as many as it may last
MOST_OBJECTS = 4  # in a caption


def game_captions() -> IterableDataset:
    """Rows of `image`, a PNG file, and `text`."""
    return _subset("atari", _game_caption)


def view_captions() -> IterableDataset:
    """Rows of `image`, a PNG file, and `text`."""
    return _subset("babyai", _view_caption)


def missions() -> IterableDataset:
    """Rows of `text`."""
    return _subset("babyai", _mission)


def _subset(domain: str, make_row: Callable[[gymnasium.Env, np.random.Generator], dict[str, Any]]) -> IterableDataset:
    """Rows of the domain's tasks in turn, a part of each, which is seeded once: a game takes 0.2 s for it."""

    def rows(parts: list[int]) -> Iterator[dict[str, Any]]:
        tasks = select_tasks(domain)
        for part in parts:
            task = tasks[part % len(tasks)]
            seed = episode_seed(task.name, part, SEED, purpose="captions")
            rng = np.random.default_rng(seed)
            with make_env(task, render_mode="rgb_array") as env:
                env.reset(seed=seed)
                for _ in range(ROWS_PER_PART):
                    yield make_row(env, rng)

    return IterableDataset.from_generator(rows, gen_kwargs={"parts": list(range(PARTS))})


def _mission(env: gymnasium.Env, rng: np.random.Generator) -> dict[str, Any]:
    observation, _ = env.reset()
    return {"text": observation["text_observation"]}


def _game_caption(env: gymnasium.Env, rng: np.random.Generator) -> dict[str, Any]:
    lives = _play(env, rng)
    game = env.task.instruction.removeprefix("play ")
    return _captioned(env.render(), game + {0: "", 1: ", 1 life left"}.get(lives, f", {lives} lives left"))


def _view_caption(env: gymnasium.Env, rng: np.random.Generator) -> dict[str, Any]:
    """What the agent sees: it stands in the middle of the lowest row and looks up."""
    _wander(env, rng)
    view, _ = env.unwrapped.gen_obs_grid()
    return _captioned(env.unwrapped.get_pov_render(TILE_SIZE), describe_view(view))


def _captioned(frame: np.ndarray, caption: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return {"image": {"bytes": file.getvalue(), "path": None}, "text": caption}


def _play(env: gymnasium.Env, rng: np.random.Generator) -> int:
    """Begin a game, so that no two rows are of one, and take some random actions; returns the lives that are left."""
    emulator = env.unwrapped.ale
    env.reset()
    for _ in range(rng.integers(LONGEST_PLAY)):
        action = emulator.getMinimalActionSet()[rng.integers(env.action_space.n)]
        for _ in range(FRAMES_PER_STEP):
            emulator.act(action)
            if emulator.game_over():
                env.reset()
                break
    return emulator.lives()


def _wander(env: gymnasium.Env, rng: np.random.Generator) -> None:
    """Begin an episode, so that no two rows are of one, and take some random actions."""
    env.reset()
    for _ in range(rng.integers(LONGEST_WALK)):
        _, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        if terminated or truncated:
            env.reset()


def describe_view(view: Any) -> str:
    """What is where in a grid of minigrid, nearest first; the cell of the agent holds what it carries."""
    found = []
    for x in range(view.width):
        for y in range(view.height):
            thing = view.get(x, y)
            if thing is None or thing.type in ("wall", "floor"):
                continue
            ahead, right = view.height - 1 - y, x - view.width // 2
            found.append(((ahead + abs(right), ahead, right), f"{_name(thing)} {_place(ahead, right)}"))
    return ", ".join(text for _, text in sorted(found)[:MOST_OBJECTS]) or "nothing"


def _name(thing: Any) -> str:
    words = f"{thing.color} {thing.type}"
    if thing.type == "door":
        words = f"{'open' if thing.is_open else 'locked' if thing.is_locked else 'closed'} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _place(ahead: int, right: int) -> str:
    if ahead == right == 0:
        return "in hand"
    side = f"{abs(right)} {'right' if right > 0 else 'left'}"
    return " ".join([f"{ahead} ahead"] * (ahead > 0) + [side] * (right != 0))


register_text("game-captions", Source(game_captions, itemgetter("text"), image="image"))
register_text("view-captions", Source(view_captions, itemgetter("text"), image="image"))
register_text("missions", Source(missions, itemgetter("text")))
