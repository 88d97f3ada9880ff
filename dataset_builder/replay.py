"""Videos of a policy at work: a grid of episodes with their tasks' names, as H.264."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .envs import TaskEnv
from .episodes import Episode
from .rollout import Policy, rollout

TILE = 320  # pixels; both sides of a tile of the grid without its caption
CAPTION = 32


def record_episode(env: TaskEnv, policy: Policy, seed: int) -> tuple[list[np.ndarray], Episode]:
    """Play an episode in an environment with `render_mode="rgb_array"`; a captioned frame for every timestep."""
    frames: list[np.ndarray] = []
    episode = rollout(env, policy, seed, on_step=lambda env: frames.append(env.render()))
    outcome = f"return {episode.total_reward:.1f}"
    if episode.success is not None:
        outcome += ", success" if episode.success else ", no success"
    mission = next(iter(episode.observations.get("text_observation", ())), None)
    return [_tile(frame, f"{env.task.name}: {outcome}", mission or env.task.instruction) for frame in frames], episode


def _tile(frame: np.ndarray, title: str, subtitle: str) -> np.ndarray:
    image = Image.fromarray(np.asarray(frame, np.uint8))
    image = ImageOps.contain(image, (TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE + CAPTION), "black")
    tile.paste(image, ((TILE - image.width) // 2, CAPTION + (TILE - image.height) // 2))
    draw = ImageDraw.Draw(tile)
    draw.text((6, 3), title, fill="white")
    draw.text((6, 17), subtitle, fill="lightgray")
    return np.asarray(tile)


def write_replay(clips: Sequence[Sequence[np.ndarray]], path: Path, fps: int = 30) -> None:
    """Write clips side by side, two in a row; a clip that ends first shows its last frame."""
    columns = min(2, len(clips))
    rows = -(-len(clips) // columns)
    height, width, _ = clips[0][0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width * columns, height * rows, "yuv420p"
        stream.options = {"crf": "28", "threads": "1"}  # one thread: the same bytes everywhere
        for t in range(max(len(clip) for clip in clips)):
            grid = np.zeros((height * rows, width * columns, 3), np.uint8)
            for i, clip in enumerate(clips):
                y, x = i // columns * height, i % columns * width
                grid[y : y + height, x : x + width] = clip[min(t, len(clip) - 1)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grid, format="rgb24")))
        container.mux(stream.encode())
