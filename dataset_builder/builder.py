"""Builds data sets: episodes of experts become Parquet shards that `datasets.load_dataset` reads.

Episodes are played by workers, which append each to a part as soon as it is finished; whole shards are written from
the parts. So a build can be interrupted at any moment and goes on with the finished episodes kept, by any number of
workers on any number of machines, and the result is the same, byte for byte. `shards.py` says which file is what.
"""

import pickle
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
from tqdm import tqdm

from .cards import write_dataset_card
from .envs import TaskEnv, make_env
from .episodes import Episode, row_schema, task_features
from .evaluation import Player
from .executors import check_executor, map_unordered
from .experts import load_expert
from .pictures import ASSETS
from .rollout import ExpertGaveUp, Policy, episode_seed, rollout
from .shards import (
    LOCK,
    MANIFEST,
    PARTS,
    SPLITS,
    UNFINISHED,
    Recipe,
    as_path,
    find_shards,
    finish_task,
    is_local,
    lock_folder,
    make_folder,
    new_part,
    origin,
    playing_packages,
    read_part,
    split_of,
    unnamed_shard,
    write_shard,
)
from .students import StudentActs
from .tasks import TaskSpec, get_task, select_tasks
from .text import build_text, text_rows

# A shard has some ten to some hundred MB; a long Atari episode alone takes 100 MB.
EPISODES_PER_SHARD = 250
IMAGE_EPISODES_PER_SHARD = 4
# What a worker is handed at once.
EPISODES_PER_ITEM = 20
# An expert that gives up so many starts in a row of one episode is broken, not unlucky.
MAX_DROPPED_STARTS = 100


@dataclass(frozen=True)
class WorkItem:
    """Episodes of one task, to be played and appended to a part by one worker, on whatever machine."""

    task: TaskSpec
    recipe: Recipe
    indices: tuple[int, ...]
    parts: Path
    origin: dict[str, Any]


@dataclass(frozen=True)
class FinishedItem:
    task: str
    part: Path
    records: list[dict[str, Any]]


@lru_cache(maxsize=1)
def _players(task: TaskSpec, recipe: Recipe) -> tuple[TaskEnv, Policy]:
    """An environment and its expert; the last ones are kept, for making them takes longer than many an episode."""
    env = make_env(task, **recipe.env_options)
    if recipe.student:
        env = StudentActs(env, recipe.student.load(task))
    return env, load_expert(task, recipe.expert)


def generate_episodes(
    task: TaskSpec, recipe: Recipe, indices: Iterable[int]
) -> Iterator[tuple[Episode, dict[str, Any]]]:
    """Play the episodes with these indices; yields each with its record for the manifest.

    Raises:
        RuntimeError: if the expert gives up too many starts in a row.
    """
    env, policy = _players(task, recipe)
    for index in indices:
        dropped_starts = []
        for attempt in count():
            seed = episode_seed(task.name, index, recipe.seed, attempt=attempt)
            try:
                episode = rollout(env, policy, seed)
            except ExpertGaveUp as error:
                dropped_starts.append({"seed": seed, "reason": str(error)})
                if attempt == MAX_DROPPED_STARTS:
                    raise RuntimeError(
                        f"{task.name}, episode {index}: the expert {recipe.expert} gave up {attempt + 1} starts; the "
                        f"last: {error}"
                    ) from error
            else:
                break
        record = {
            "index": index,
            "seed": episode.seed,
            "timesteps": len(episode),
            "return": episode.total_reward,
            "score": episode.score,
            "success": episode.success,
            "terminated": episode.terminated,
            "dropped_starts": dropped_starts,
        }
        yield episode, record


def play_item(item: WorkItem) -> FinishedItem:
    """Play the episodes of an item, each kept as soon as it is finished.

    Raises:
        RuntimeError: if this machine has other versions than the one where the build was started.
    """
    here = origin(item.task, item.recipe)
    if here != item.origin:
        raise RuntimeError(f"this worker has other versions: {here['versions']}, expected {item.origin['versions']}")
    records = []
    with new_part(item.parts, row_schema(item.task), item.origin) as part:
        for episode, record in generate_episodes(item.task, item.recipe, item.indices):
            part.append(episode.as_rows(record["index"]), record)
            records.append(record)
    return FinishedItem(item.task.name, part.path, records)


def plan_shards(episodes: int, in_shards: set[int], size: int) -> list[tuple[str, tuple[int, ...]]]:
    """The shards that are to be written, each as its split and the indices of its episodes.

    Args:
        episodes: how many there will be.
        in_shards: those that are in a shard already, which stays as it is.
        size: most episodes of a shard.
    """
    shards = []
    for split in SPLITS:
        indices = [i for i in range(episodes) if split_of(i) == split and i not in in_shards]
        shards += [(split, tuple(indices[start : start + size])) for start in range(0, len(indices), size)]
    return shards


class TaskBuild:
    """What of one task is finished, and what is to be done.

    Args:
        task: the task.
        recipe: how its episodes are made.
        output: the folder of all tasks.
        episodes: how many there will be, or None until it is known how many have `steps` timesteps.
        steps: how many timesteps there will be at least.
    """

    def __init__(self, task: TaskSpec, recipe: Recipe, output: Path, episodes: int | None, steps: int | None) -> None:
        self.task, self.recipe, self.episodes, self.steps = task, recipe, episodes, steps
        self.origin = origin(task, recipe)
        self.folder, self.parts = output / task.name, output / PARTS / task.name
        self.in_shards: set[int] = set()
        self.part_of: dict[int, Path] = {}
        self.timesteps: dict[int, int] = {}
        for footer in find_shards(self.folder).values():
            for record in footer["episodes"]:
                self.in_shards.add(record["index"])
                self.timesteps[record["index"]] = record["timesteps"]
        if self.parts.is_dir():
            for path in self.parts.iterdir():
                self.add(path, [record for _, record in read_part(path).episodes])
        self.plan()

    def add(self, part: Path, records: list[dict[str, Any]]) -> None:
        """Count episodes that are finished."""
        for record in records:
            if record["index"] not in self.in_shards:
                self.part_of[record["index"]] = part
                self.timesteps[record["index"]] = record["timesteps"]

    def plan(self) -> None:
        """Decide how many episodes there will be, if enough are finished, and which shards they become."""
        self.target = self.episodes or self._episodes_for_steps()
        size = IMAGE_EPISODES_PER_SHARD if self.task.has_images else EPISODES_PER_SHARD
        self.open_shards = plan_shards(self.target or 0, self.in_shards, size)

    def _episodes_for_steps(self) -> int | None:
        """The fewest first episodes that have so many timesteps, and no fewer than are in shards."""
        total, least = 0, max(self.in_shards, default=-1) + 1
        for index in count():
            if total >= self.steps and index >= least:
                return index
            if index not in self.timesteps:
                return None
            total += self.timesteps[index]
        raise AssertionError

    def items(self) -> Iterator[WorkItem]:
        """The episodes to be played, as far as it is known that they are needed."""
        wanted = self.target or self._guess()
        missing = [i for i in range(wanted) if i not in self.timesteps]
        make_folder(self.parts)
        size = 1 if self.task.has_images else EPISODES_PER_ITEM
        for start in range(0, len(missing), size):
            yield WorkItem(self.task, self.recipe, tuple(missing[start : start + size]), self.parts, self.origin)

    def _guess(self) -> int:
        """About how many episodes have the wanted timesteps; to begin with, as many as it takes at least."""
        played = sum(self.timesteps.values())
        if not played:
            longest = self.recipe.max_episode_steps or self.task.horizon
            return -(-self.steps // longest) if longest else 1
        more = max(self.steps - played, 0) * len(self.timesteps) / played
        return max(max(self.timesteps) + 1, len(self.timesteps) + int(more)) + 1

    def write_ready_shards(self) -> bool:
        """Write the shards of which all episodes are finished; whether that was the last of them."""
        for split, indices in [*self.open_shards]:
            if all(index in self.part_of for index in indices):
                self._write_shard(split, indices)
                self.open_shards.remove((split, indices))
        return self.target is not None and not self.open_shards

    def _write_shard(self, split: str, indices: tuple[int, ...]) -> None:
        paths = {self.part_of[index] for index in indices}
        wanted = set(indices)
        finished = {
            record["index"]: (batch, record)
            for path in paths
            for batch, record in read_part(path).episodes
            if record["index"] in wanted
        }
        footer = {
            **self.origin,
            "split": split,
            "first_index": indices[0],
            "episodes": [finished[index][1] for index in indices],
        }
        batches = (finished[index][0] for index in indices)
        write_shard(unnamed_shard(self.folder, split, indices[0]), row_schema(self.task), batches, footer)
        self.in_shards |= wanted
        for index in indices:
            del self.part_of[index]
        for path in paths - set(self.part_of.values()):
            path.unlink()


def _remove_folder(folder: Path) -> None:
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmdir(recursive=True)


def build(
    tasks: str | list[str],
    output: str | Path,
    *,
    episodes: int | None = None,
    steps: int | None = None,
    expert: str | None = None,
    seed: int = 0,
    num_workers: int = 1,
    executor: str = "local",
    max_episode_steps: int | None = None,
    action_noise: float = 0.0,
    student: Player | None = None,
    allow_local: bool = False,
    progress: bool = True,
) -> Path:
    """Build the data sets of some tasks, or go on with a build that was interrupted, or extend one.

    Args:
        tasks: patterns, as in `select_tasks`.
        output: the folder, or a URL that fsspec knows. What it holds of the same build is kept.
        episodes: how many episodes of each task, test episodes included; of a text subset, how many rows.
        steps: instead, how many timesteps of each task at least: the fewest whole episodes that have them.
        expert: kind of expert; each task's own by default.
        seed: base seed of all episodes.
        num_workers: processes of the executor "local".
        executor: "local" or "ray", see `executors.map_unordered`.
        max_episode_steps: truncate episodes after so many timesteps.
        action_noise: execute about every second episode's actions with noise, see `envs.ActionNoise`; the expert's
            own are stored.
        student: an agent whose actions are executed in place of some of the expert's, see `students.StudentActs`;
            those that the expert meant are stored.
        allow_local: whether the images of a text subset may come from addresses of this machine and its network.
        progress: show bars.

    Returns:
        The folder.

    Raises:
        ValueError: if a task is unknown, a number is out of range, the folder holds something else, or another
            process builds in it.
        MissingExpertError: if a task has no expert.
    """
    output = as_path(output)
    selected = select_tasks(tasks)
    check_executor(executor)
    if (episodes is None) == (steps is None):
        raise ValueError(f"expected either episodes or steps, got episodes={episodes} and steps={steps}")
    numbers = {
        "episodes": episodes,
        "steps": steps,
        "num_workers": num_workers,
        "max_episode_steps": max_episode_steps,
    }
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= action_noise < 1:
        raise ValueError(f"action_noise must be at least 0 and below 1, got {action_noise}")
    recipes: dict[TaskSpec, Recipe] = {}
    texts = [task for task in selected if task.domain == "text"]
    if texts and episodes is None:
        raise ValueError(f"{texts[0].name} is a text subset, which has no timesteps: say how many rows by episodes")
    for task in selected:
        if task in texts:
            recipes[task] = Recipe(task=task.name, expert=task.env_id)
            continue
        load_expert(task, expert)  # fails here, before any work, if there is none
        name = expert or task.expert_name
        options = {"max_episode_steps": max_episode_steps, "action_noise": action_noise}
        recipes[task] = Recipe(task=task.name, expert=name, seed=seed, student=student, **options)
        if action_noise:
            make_env(task, **options).close()  # fails here if the task's actions are discrete
        if executor == "local" and num_workers > 1:
            _check_travels(task)
    _refuse_foreign(output, recipes, episodes)

    with lock_folder(output):
        builds = [
            TaskBuild(task, recipe, output, episodes, steps) for task, recipe in recipes.items() if task not in texts
        ]
        _play(builds, executor, num_workers, progress)
        for task in texts:
            build_text(task, recipes[task], output / task.name, episodes, progress, allow_local)
        # All at once and last, for until then readers go by the card of the build before.
        for task in selected:
            finish_task(output / task.name, task)
        write_dataset_card(output)
        _remove_folder(output / PARTS)
    return output


def _play(builds: list[TaskBuild], executor: str, num_workers: int, progress: bool) -> None:
    """Play what is missing, in rounds: it may take one to know how many episodes have the wanted timesteps."""
    open_builds = {build.task.name: build for build in builds if not build.write_ready_shards()}
    begun, timesteps = time.monotonic(), 0
    returns: dict[str, list[float]] = {}
    bar = tqdm(
        total=sum(build.target or 0 for build in builds) or None,
        initial=sum(len(build.timesteps) for build in builds),
        unit="episode",
        disable=not progress,
        smoothing=0.05,
    )
    with bar:
        while open_builds:
            items = (item for build in [*open_builds.values()] for item in build.items())
            for finished in map_unordered(play_item, items, executor, num_workers):
                build = open_builds[finished.task]
                build.add(finished.part, finished.records)
                if build.write_ready_shards():
                    del open_builds[finished.task]
                timesteps += sum(record["timesteps"] for record in finished.records)
                earned = returns.setdefault(finished.task, [])
                earned += [record["return"] for record in finished.records]
                rate = timesteps / (time.monotonic() - begun)
                bar.set_description(finished.task, refresh=False)
                bar.set_postfix_str(f"{rate:,.0f} steps/s, mean return {fmean(earned):.1f}", refresh=False)
                bar.update(len(finished.records))
            for name, build in [*open_builds.items()]:
                build.plan()
                if build.write_ready_shards():
                    del open_builds[name]


def _check_travels(task: TaskSpec) -> None:
    """Refuse an expert that cannot be sent to other processes."""
    try:
        pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the expert of {task.name} ({task.expert_name}) cannot be sent to worker processes ({error}): define it "
            "by its name in a module, or build with one worker"
        ) from error


def _refuse_foreign(output: Path, recipes: dict[TaskSpec, Recipe], episodes: int | None) -> None:
    """Refuse a folder that holds anything but data sets of the same recipes, before anything is written."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"{output} is a file: expected a folder, or a path where one can be made")
    selected = {task.name for task in recipes}
    known = selected | {task.name for task in select_tasks(["all", "text"])}
    for entry in sorted(output.iterdir()):
        if entry.name in ("README.md", ASSETS, PARTS, LOCK) or entry.name.startswith(UNFINISHED):
            continue
        if not entry.is_dir() or not (entry.name in known or (entry / MANIFEST).exists()):
            raise ValueError(
                f"{output} holds something else ({entry.name}): choose an empty folder or one of an earlier build"
            )
        if entry.name in selected:
            for path in sorted(entry.iterdir()):
                if path.name != MANIFEST and path.suffix != ".parquet" and not path.name.startswith(UNFINISHED):
                    raise ValueError(f"{entry} holds something else ({path.name}): choose another folder")
    for task, recipe in recipes.items():
        for path, footer in find_shards(output / task.name).items():
            _refuse_other_origin(path, footer, task, recipe)
            last = footer["episodes"][-1]["index"] if "episodes" in footer else footer["last_index"]
            if episodes is not None and last >= episodes:
                raise ValueError(
                    f"{path} holds episode {last}, this build asks for {episodes} episodes only: choose another "
                    "folder, or ask for more"
                )
        parts = output / PARTS / task.name
        for path in parts.iterdir() if parts.is_dir() else ():
            if found := read_part(path).origin:
                _refuse_other_origin(path, found, task, recipe)


def _refuse_other_origin(path: Path, found: dict[str, Any], task: TaskSpec, recipe: Recipe) -> None:
    expected = origin(task, recipe)
    if found["recipe"] != expected["recipe"]:
        raise ValueError(
            f"{path} was built by another recipe: it has {found['recipe']}, this build asks for "
            f"{expected['recipe']}: choose another folder, or build with the same options"
        )
    others = [
        f"{name} {found['versions'].get(name)} (now {expected['versions'][name]})"
        for name in playing_packages(task)
        if found["versions"].get(name) != expected["versions"][name]
    ]
    if others:
        raise ValueError(
            f"{path} was built with other versions, which may play other episodes: {', '.join(others)}: install "
            "those, or choose another folder"
        )


@dataclass
class JatDatasetConfig(datasets.BuilderConfig):
    """One task of `JatDataset`.

    Args:
        episodes: how many episodes, test episodes included; of a text subset, how many rows.
        seed: base seed of all episodes.
        expert: kind of expert; the task's own by default.
        max_episode_steps: truncate episodes after so many timesteps.
    """

    episodes: int = 100
    seed: int = 0
    expert: str | None = None
    max_episode_steps: int | None = None


class JatDataset(datasets.GeneratorBasedBuilder):
    """The same data sets through `datasets`' own builder interface, one configuration for each task.

    JatDataset(config_name="metaworld-reach", episodes=10).download_and_prepare("DIR", file_format="parquet")
    """

    BUILDER_CONFIG_CLASS = JatDatasetConfig
    BUILDER_CONFIGS = [
        JatDatasetConfig(name=task.name, description=task.instruction) for task in select_tasks(["all", "text"])
    ]
    DEFAULT_WRITER_BATCH_SIZE = 8  # rows in memory; one of Atari may have 3 MB

    def _info(self) -> datasets.DatasetInfo:
        task = get_task(self.config.name)
        return datasets.DatasetInfo(features=task_features(task), description=task.instruction)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        indices = {split: [i for i in range(self.config.episodes) if split_of(i) == split] for split in SPLITS}
        return [
            datasets.SplitGenerator(split, gen_kwargs={"indices": indices[split]}) for split in SPLITS if indices[split]
        ]

    def _generate_examples(self, indices: list[int]) -> Iterator[tuple[Any, dict[str, Any]]]:
        task = get_task(self.config.name)
        if task.domain == "text":
            wanted = set(indices)
            for index, row in enumerate(text_rows(task, self.config.episodes)):
                if index in wanted:
                    yield index, row
            return
        recipe = Recipe(
            task=task.name,
            expert=self.config.expert or task.expert_name,
            seed=self.config.seed,
            max_episode_steps=self.config.max_episode_steps,
        )
        for episode, record in generate_episodes(task, recipe, indices):
            for part, row in enumerate(episode.as_rows(record["index"]).to_pylist()):
                yield (record["index"], part), row
