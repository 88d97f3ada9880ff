"""Videos of a policy at work: a grid of episodes with their tasks' names, as H.264."""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .envs import TaskEnv, make_env, rendering_problem
from .episodes import Episode
from .rollout import Policy, episode_seed, rollout
from .tasks import TaskSpec

TILE = 320  # pixels; both sides of a tile of the grid without its caption
CAPTION = 32
MAX_BYTES = 20_000_000


def record_episode(env: TaskEnv, policy: Policy, seed: int) -> tuple[list[np.ndarray], Episode]:
    """Play an episode in an environment with `render_mode="rgb_array"`; a captioned frame for every timestep."""
    frames: list[np.ndarray] = []
    episode = rollout(env, policy, seed, on_step=lambda env: frames.append(env.render()))
    outcome = f"return {episode.total_reward:.1f}"
    if episode.success is not None:
        outcome += ", success" if episode.success else ", no success"
    mission = next(iter(episode.observations.get("text_observation", ())), None)
    return [_tile(frame, f"{env.task.name}: {outcome}", mission or env.task.instruction) for frame in frames], episode


def film(
    tasks: Iterable[TaskSpec],
    policy_of: Callable[[TaskSpec], Policy],
    *,
    seed: int = 0,
    max_episode_steps: int | None = None,
) -> dict[str, list[np.ndarray]]:
    """Film an episode of every task that this machine can render, and print how it went; clips by task.

    MuJoCo and Meta-World need OSMesa or EGL; a task that cannot be rendered is left out, and the reason said.
    """
    clips = {}
    for task in tasks:
        if problem := rendering_problem(task):
            print(f"{task.name} is left out, it cannot be rendered here ({problem})")
            continue
        with make_env(task, render_mode="rgb_array", max_episode_steps=max_episode_steps) as env:
            episode_start = episode_seed(task.name, 0, seed, purpose="evaluate")
            clips[task.name], episode = record_episode(env, policy_of(task), episode_start)
        print(episode, flush=True)
    return clips


def _tile(frame: np.ndarray, title: str, subtitle: str) -> np.ndarray:
    image = Image.fromarray(np.asarray(frame, np.uint8))
    image = ImageOps.contain(image, (TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE + CAPTION), "black")
    tile.paste(image, ((TILE - image.width) // 2, CAPTION + (TILE - image.height) // 2))
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(size=12)
    draw.text((6, 1), title, fill="white", font=font)
    draw.text((6, 15), subtitle, fill="lightgray", font=font)
    return np.asarray(tile)


def write_replay(clips: Sequence[Sequence[np.ndarray]], path: Path, fps: int = 30) -> None:
    """Write clips in a grid about as wide as high; a clip that ends first shows its last frame.

    Raises:
        ValueError: if the video would have more than `MAX_BYTES`.
    """
    columns = math.ceil(len(clips) ** 0.5)
    rows = -(-len(clips) // columns)
    height, width, _ = clips[0][0].shape
    for quality in range(28, 52, 4):  # of the encoder: higher is worse
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps))
            stream.width, stream.height, stream.pix_fmt = width * columns, height * rows, "yuv420p"
            stream.options = {"crf": str(quality), "threads": "1"}  # one thread: the same bytes everywhere
            for t in range(max(len(clip) for clip in clips)):
                grid = np.zeros((height * rows, width * columns, 3), np.uint8)
                for i, clip in enumerate(clips):
                    y, x = i // columns * height, i % columns * width
                    grid[y : y + height, x : x + width] = clip[min(t, len(clip) - 1)]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grid, format="rgb24")))
            container.mux(stream.encode())
        if path.stat().st_size <= MAX_BYTES:
            return
    raise ValueError(f"{path} has {path.stat().st_size / 1e6:.0f} MB at the lowest quality: film fewer tasks, or less")
