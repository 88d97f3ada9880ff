import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from conftest import Hardest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataset_builder import get_task, task_features
from dataset_builder.builder import build
from dataset_builder.episodes import Episodes
from dataset_builder.mixing import (
    FixedWeights,
    StreamedWindows,
    TaskBatches,
    WindowKey,
    Windows,
    draw_stretch,
    loss_weight,
)

PENDULUM = "mujoco-pendulum"


def rows(lengths, task=PENDULUM):
    """Episodes that count: observation, action and reward of timestep t of episode e are 100 e + t."""
    numbers = [100.0 * e + np.arange(length, dtype=np.float32) for e, length in enumerate(lengths)]
    columns = [
        {
            "continuous_observations": np.repeat(values[:, None], 4, 1),
            "continuous_actions": values[:, None],
            "rewards": values,
        }
        for values in numbers
    ]
    return Dataset.from_list(columns, features=task_features(get_task(task)))


def texts(*lines):
    return Dataset.from_dict({"text": list(lines)}, features=task_features(get_task("wikipedia")))


def draw(windows, task=PENDULUM, batches=50, batch_size=8):
    return [windows[WindowKey(task, batch, row)] for batch in range(batches) for row in range(batch_size)]


def tasks_of(batches):
    return [batch[0].task for batch in batches]


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), window=st.integers(1, 40), seed=st.integers(0, 5))
def test_windows_are_stretches_of_episodes(lengths, window, seed):
    for drawn in draw(Windows({PENDULUM: rows(lengths)}, window, seed=seed), batches=2):
        values = drawn.columns["continuous_actions"][:, 0]
        episode, start = divmod(int(values[0]), 100)
        length = min(window, lengths[episode] - start)
        expected = values[0] + np.arange(length)
        assert np.array_equal(values, expected)
        assert np.array_equal(drawn.columns["continuous_observations"], np.repeat(expected[:, None], 4, 1))
        assert drawn.columns["rewards"].tolist() == ([0.0] if start == 0 else [expected[0] - 1]) + list(expected[:-1])
        assert drawn.place == f"timesteps {start} to {start + length - 1} of episode {episode}"


def test_every_timestep_is_drawn_and_beginnings_up_to_twice_as_often():
    counts = np.zeros(20)
    for window in draw(Windows({PENDULUM: rows([20])}, window=5), batches=2500):
        counts[window.columns["continuous_actions"][:, 0].astype(int)] += 1
    usual = counts[5:].mean()
    assert counts[5:].std() < 0.05 * usual
    assert counts[:5].min() > 0.95 * usual
    assert counts[:5].max() < 2 * usual


def test_a_window_is_a_function_of_its_key_and_the_seed():
    first, again, other = (Windows({PENDULUM: rows([10, 20, 30])}, seed=seed) for seed in (1, 1, 2))
    places = [window.place for window in draw(first)]
    assert [window.place for window in reversed(draw(again))] == places[::-1]
    assert [window.place for window in draw(other)] != places


def test_some_windows_come_with_an_instruction():
    windows = draw(Windows({PENDULUM: rows([10])}, instructed=0.25))
    assert 0.15 < np.mean([window.prompt is not None for window in windows]) < 0.35
    assert {window.prompt for window in windows} == {"balance the pendulum on the cart", None}


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), window=st.integers(2, 20))
def test_a_demonstration_is_a_stretch_of_another_episode(lengths, window):
    for drawn in draw(Windows({PENDULUM: rows(lengths)}, window, demonstrated=1.0), batches=3):
        values, rewards = drawn.columns["continuous_actions"][:, 0], drawn.columns["rewards"]
        assert len(values) <= window
        # The episode itself begins anew, so where one stretch ends and the other begins can be seen by the rewards.
        [demonstrated, played] = [int(part.split(" of episode ")[1]) for part in drawn.place.split(", ")]
        assert demonstrated != played or len(lengths) == 1
        own = (values >= 100 * played) & (values < 100 * played + 100)
        if demonstrated != played:
            assert own[-1]
            assert not own[0]
            assert np.flatnonzero(own)[0] <= window // 2
        expected = np.where(values % 100 == 0, 0, values - 1)
        assert np.array_equal(rewards, expected)


def test_half_of_the_demonstrations_are_the_end_of_an_episode():
    windows = draw(Windows({PENDULUM: rows([50, 50])}, window=10, demonstrated=1.0))
    ends = [window.place.startswith("timesteps 45 to 49") for window in windows]
    assert 0.4 < np.mean(ends) < 0.6


def test_texts_are_cut_between_words():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(500)]
    text = " ".join(words)
    for _ in range(200):
        stretch = draw_stretch(text, 40, rng)
        assert 20 < len(stretch) <= 40
        first = words.index(stretch.split()[0])
        assert stretch.split() == words[first : first + len(stretch.split())]
    assert draw_stretch("short", 40, rng) == "short"
    assert len(draw_stretch("x" * 100, 40, rng)) == 40
    windows = Windows({"wikipedia": texts(text, "another one")}, text_window=40)
    drawn = draw(windows, "wikipedia")
    assert {window.columns["text"] == "another one" for window in drawn} == {True, False}
    assert all(window.is_end == window.columns["text"].endswith(("another one", "w499")) for window in drawn)


def test_batches_hold_one_task_drawn_by_weight():
    rule = FixedWeights({PENDULUM: 3.0, "mujoco-swimmer": 1.0, "mujoco-hopper": 0.0})
    batches = list(TaskBatches(rule, batch_size=3, num_batches=400))
    assert all(
        batch == [WindowKey(batch[0].task, number, row) for row in range(3)] for number, batch in enumerate(batches)
    )
    assert 0.68 < np.mean([task == PENDULUM for task in tasks_of(batches)]) < 0.82
    assert "mujoco-hopper" not in tasks_of(batches)


def test_tasks_of_one_shape_share_batches_by_weight():
    same = [PENDULUM, "metaworld-reach"]  # the rows below are as wide
    windows = Windows({**{task: rows([20, 30], task) for task in same}, "mujoco-swimmer": swimmer()}, window=4)
    rule = FixedWeights({PENDULUM: 3.0, "metaworld-reach": 1.0, "mujoco-swimmer": 4.0})
    batches = list(TaskBatches(rule, batch_size=8, num_batches=200, shapes=windows.shapes))
    for number, batch in enumerate(batches):
        assert [(key.batch, key.row) for key in batch] == [(number, row) for row in range(8)]
        assert {key.task for key in batch} in ({"mujoco-swimmer"}, {PENDULUM}, set(same), {"metaworld-reach"})
    drawn = [key.task for batch in batches for key in batch]
    shares = [drawn.count(task) / len(drawn) for task in windows.tasks]
    np.testing.assert_allclose(shares, [3 / 8, 1 / 8, 4 / 8], atol=0.1)
    assert np.mean([len({key.task for key in batch}) == 2 for batch in batches]) > 0.3


def test_published_weights():
    assert FixedWeights.published(["oscar", "atari-pong"]).weights() == {"oscar": 10.0, "atari-pong": 1.0}
    names = ["mujoco-ant", PENDULUM, "mujoco-doublependulum", "metaworld-reach", "atari-pong", "babyai-open"]
    assert [loss_weight(get_task(name)) for name in names] == [10, 50, 20, 50, 1, 1]


@pytest.mark.parametrize(("weights", "message"), [({"a": -1.0}, "from 0 on"), ({"a": 0.0}, "above 0"), ({}, "above 0")])
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        FixedWeights(weights)


def training(batches, start, stop, ahead):
    """Draw the tasks of some batches, `ahead` of them before they are needed, with made-up losses."""
    drawn, tasks = islice(batches, start, None), []
    queue = list(islice(drawn, ahead))
    for number in range(start, stop):
        queue += [batch for batch in [next(drawn, None)] if batch]
        tasks.append(queue.pop(0)[0].task)
        if (number + 1) % batches.round_length == 0:
            batches.end_round({"a": np.sin(number), "b": np.cos(number)})
    return tasks


@settings(deadline=None, max_examples=25)
@given(stop=st.integers(1, 59), ahead=st.integers(0, 9), resumed_ahead=st.integers(0, 9))
def test_a_rule_that_learns_goes_on_with_the_same_batches(stop, ahead, resumed_ahead):
    """Whatever the number of batches that were drawn ahead, before and after."""

    def batches():
        return TaskBatches(Hardest("ab"), batch_size=2, num_batches=60, round_length=10)

    undisturbed = training(batches(), 0, 60, ahead=0)
    # Losses of a round that is cut off by the interruption are not known: training saves at the end of rounds.
    stop -= stop % 10
    interrupted = batches()
    tasks = training(interrupted, 0, stop, ahead)
    resumed = batches()
    resumed.load_state_dict(interrupted.state_dict())
    assert tasks + training(resumed, stop, 60, resumed_ahead) == undisturbed
    assert len(set(undisturbed)) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_share_the_batches_without_overlap(num_workers):
    """Accelerate deals the batches to the processes of a training, torch to those that load."""
    tasks = [PENDULUM, "mujoco-swimmer"]
    windows = Windows({task: rows([20, 30], PENDULUM) if task == PENDULUM else swimmer() for task in tasks}, window=4)

    def load(sampler):
        return list(DataLoader(windows, batch_sampler=sampler, num_workers=num_workers, collate_fn=list))

    def batches():
        return TaskBatches(FixedWeights.published(tasks), batch_size=3, num_batches=12)

    alone = [[(w.task.name, w.place) for w in batch] for batch in load(batches())]
    shares = [
        [[(w.task.name, w.place) for w in batch] for batch in load(BatchSamplerShard(batches(), 2, index))]
        for index in (0, 1)
    ]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == alone


def swimmer():
    columns = {
        "continuous_observations": np.zeros((9, 8)),
        "continuous_actions": np.zeros((9, 2)),
        "rewards": [0.0] * 9,
    }
    return Dataset.from_list([columns], features=task_features(get_task("mujoco-swimmer")))


def test_columns_of_every_domain(load_task):
    shapes = {
        "babyai-go-to-red-ball-no-dists": ("discrete_observations", (148,)),
        "metaworld-reach": ("continuous_observations", (39,)),
        "atari-pong": ("image_observations", (84, 84, 4)),
    }
    for task, (column, shape) in shapes.items():
        dataset = load_task(task)
        for window in draw(Windows({task: dataset}, window=8, image_window=2), task, batches=2):
            assert window.columns[column].shape[1:] == shape
            start, stop, episode = (int(word) for word in window.place.split() if word.isdigit())
            expected = np.array(dataset[episode][column][start : stop + 1])
            assert np.array_equal(window.columns[column], expected)
            if task.startswith("babyai"):
                assert len(window.columns["text_observations"]) == stop + 1 - start


@pytest.fixture
def streamed(data_folder, monkeypatch, tmp_path):
    """Pong's episodes of 150 timesteps, in two rows each; row groups of three rows begin within an episode."""
    monkeypatch.setattr("dataset_builder.shards.ROW_GROUP_BYTES", 200_000)
    build(["atari-pong"], tmp_path, episodes=6, expert="random", max_episode_steps=150, progress=False)
    return lambda **kwargs: load_dataset(str(tmp_path), "atari-pong", split="train", **kwargs)


def test_streamed_windows_are_those_of_the_data_set(streamed):
    stream = streamed(streaming=True).reshard()
    assert stream.num_shards > 3
    windows = StreamedWindows({"atari-pong": stream}, image_window=4, batches_per_visit=2)
    frames = {
        frame.tobytes() for episode in Episodes(streamed(), "atari-pong") for frame in episode["image_observations"]
    }
    seen = {frame.tobytes() for window in draw(windows, "atari-pong") for frame in window.columns["image_observations"]}
    assert seen <= frames
    assert len(seen) > 0.5 * len(frames)


def test_streamed_windows_are_a_function_of_their_key(streamed):
    def make():
        return StreamedWindows({"atari-pong": streamed(streaming=True)}, image_window=4, batches_per_visit=2)

    places = [window.place for window in draw(make(), "atari-pong", batches=30)]
    assert len(set(places)) > 20
    later = make()
    assert [later[WindowKey("atari-pong", 20, row)].place for row in range(8)] == places[160:168]


def test_processes_read_different_parts_of_a_stream(streamed):
    stream = streamed(streaming=True)
    visits = stream.reshard().num_shards // 2
    read = []
    for process in (0, 1):
        windows = StreamedWindows({"atari-pong": stream}, batches_per_visit=1, num_streams=2)
        read.append(set())
        for batch in range(process, 2 * visits, 2):
            source = windows.source(WindowKey("atari-pong", batch, 0))
            read[-1].add(np.asarray(source[0]["image_observations"]).tobytes())
    assert len(read[0]) == len(read[1]) == visits
    assert not read[0] & read[1]


def test_a_part_of_a_data_set_begins_within_an_episode(streamed):
    """The first timestep that is there begins no window, for nobody knows the reward before it."""
    dataset = streamed().select(range(1, 6))
    windows = draw(Windows({"atari-pong": dataset}, image_window=4), "atari-pong")
    starts = [int(window.place.split()[1]) for window in windows if window.place.endswith("episode 0")]
    assert min(starts) >= 129
    assert max(starts) < 150


def test_data_that_cannot_be_trained_on_are_refused(streamed):
    dataset = rows([5])
    for faulty, message in [
        (dataset.remove_columns("rewards"), "mujoco-pendulum: the data set lacks rewards"),
        (dataset.select([]), "mujoco-pendulum: the data set has no episode"),
    ]:
        with pytest.raises(ValueError, match=message):
            Windows({PENDULUM: faulty})
    with pytest.raises(ValueError, match="wikipedia: the data set lacks text; it has words"):
        Windows({"wikipedia": texts("a").rename_column("text", "words")})
    with pytest.raises(ValueError, match="row 1 holds timesteps from 128 on of episode 1, which do not follow"):
        Windows({"atari-pong": streamed().select([0, 3])})
    with pytest.raises(ValueError, match="instructed must be a fraction"):
        Windows({PENDULUM: dataset}, instructed=2.0)
    with pytest.raises(ValueError, match="windows must be 2 long at least, got 1"):
        Windows({PENDULUM: dataset}, window=1, demonstrated=0.5)


def test_needs_no_torch():
    code = "import dataset_builder.mixing, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
