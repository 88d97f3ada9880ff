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
from dataset_builder.rollout import episode_seed
from dataset_builder.text import Source, register_text

# A part is a function of its number: a build goes on with the next one.
SEED, PARTS, ROWS_PER_PART = 0, 20_000, 8
TILE_SIZE = 16  # pixels
LONGEST_WALK = {"atari": 200, "babyai": 20}  # timesteps before a frame
MOST_OBJECTS = 4  # in a caption


def game_captions() -> IterableDataset:
    """Rows of `image`, a PNG file, and `text`."""
    return _frames("atari", _game_frame)


def view_captions() -> IterableDataset:
    """Rows of `image`, a PNG file, and `text`."""
    return _frames("babyai", _view_frame)


def missions() -> IterableDataset:
    """Rows of `text`."""
    return IterableDataset.from_generator(_missions, gen_kwargs={"parts": list(range(PARTS))})


def _frames(
    domain: str, describe: Callable[[gymnasium.Env, dict[str, Any]], tuple[np.ndarray, str]]
) -> IterableDataset:
    def rows(parts: list[int]) -> Iterator[dict[str, Any]]:
        tasks = select_tasks(domain)
        for part in parts:
            task = tasks[part % len(tasks)]
            with make_env(task, render_mode="rgb_array") as env:
                for number in range(ROWS_PER_PART):
                    seed = episode_seed(task.name, part * ROWS_PER_PART + number, SEED, purpose="captions")
                    frame, caption = describe(env, _wander(env, seed))
                    file = io.BytesIO()
                    Image.fromarray(frame).save(file, "PNG")
                    yield {"image": {"bytes": file.getvalue(), "path": None}, "text": caption}

    return IterableDataset.from_generator(rows, gen_kwargs={"parts": list(range(PARTS))})


def _wander(env: gymnasium.Env, seed: int) -> dict[str, Any]:
    """Begin an episode and take some random actions, so that no two rows are of one episode; returns the last info."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    for _ in range(rng.integers(LONGEST_WALK[env.task.domain])):
        _, _, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        if terminated or truncated:
            _, info = env.reset()
    return info


def _game_frame(env: gymnasium.Env, info: dict[str, Any]) -> tuple[np.ndarray, str]:
    game = env.task.instruction.removeprefix("play ")
    lives = {0: "", 1: ", 1 life left"}.get(info["lives"], f", {info['lives']} lives left")
    return env.render(), game + lives


def _view_frame(env: gymnasium.Env, info: dict[str, Any]) -> tuple[np.ndarray, str]:
    """What the agent sees: it stands in the middle of the lowest row and looks up."""
    level = env.unwrapped
    frame = level.get_pov_render(TILE_SIZE)
    view, _ = level.gen_obs_grid()
    return frame, describe_view(view)


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


def _missions(parts: list[int]) -> Iterator[dict[str, Any]]:
    tasks = select_tasks("babyai")
    for part in parts:
        task = tasks[part % len(tasks)]
        with make_env(task) as env:
            for number in range(ROWS_PER_PART):
                seed = episode_seed(task.name, part * ROWS_PER_PART + number, SEED, purpose="captions")
                yield {"text": env.reset(seed=seed)[0]["text_observation"]}


register_text("game-captions", Source(game_captions, itemgetter("text"), image="image"))
register_text("view-captions", Source(view_captions, itemgetter("text"), image="image"))
register_text("missions", Source(missions, itemgetter("text")))
