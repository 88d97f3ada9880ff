import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder import get_task, task_features
from dataset_builder.mixing import TaskBatches, WindowKey, Windows, loss_weight


def episodes(lengths, task="mujoco-pendulum"):
    """Episodes that count: observation, action and reward of timestep t of episode e are 100 e + t."""
    rows = []
    for e, length in enumerate(lengths):
        numbers = 100.0 * e + np.arange(length, dtype=np.float32)
        rows.append(
            {
                "continuous_observations": np.repeat(numbers[:, None], 4, 1),
                "continuous_actions": numbers[:, None],
                "rewards": numbers,
            }
        )
    return Dataset.from_list(rows, features=task_features(get_task(task)))


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), window=st.integers(1, 40), seed=st.integers(0, 5))
def test_windows_are_stretches_of_episodes(lengths, window, seed):
    windows = Windows({"mujoco-pendulum": episodes(lengths)}, window=window)
    for batch in TaskBatches(windows, batch_size=4, seed=seed, num_batches=3):
        for key in batch:
            values = windows[key]
            length = min(window, lengths[key.episode] - key.start)
            expected = 100.0 * key.episode + key.start + np.arange(length)
            assert length >= 1
            assert np.array_equal(values["continuous_actions"][:, 0], expected)
            assert np.array_equal(values["continuous_observations"], np.repeat(expected[:, None], 4, 1))
            assert values["rewards"][1:].tolist() == expected[:-1].tolist()


def test_every_timestep_is_drawn_and_beginnings_up_to_twice_as_often():
    windows = Windows({"mujoco-pendulum": episodes([20])}, window=5)
    counts = np.zeros(20)
    for batch in TaskBatches(windows, batch_size=100, num_batches=200):
        for key in batch:
            counts[key.start : key.start + 5] += 1
    usual = counts[5:].mean()
    assert counts[5:].std() < 0.05 * usual
    assert counts[:5].min() > 0.95 * usual
    assert counts[:5].max() < 2 * usual


def test_batches_hold_one_task_drawn_by_weight():
    data = {"mujoco-pendulum": episodes([10]), "mujoco-swimmer": episodes([10]), "mujoco-hopper": episodes([10])}
    weights = {"mujoco-pendulum": 3.0, "mujoco-hopper": 0.0}
    batches = list(TaskBatches(Windows(data), batch_size=3, num_batches=400, weights=weights))
    assert all(len({key.task for key in batch}) == 1 for batch in batches)
    share = np.mean([batch[0].task == "mujoco-pendulum" for batch in batches])
    assert 0.68 < share < 0.82
    assert not any(batch[0].task == "mujoco-hopper" for batch in batches)


def test_a_fraction_of_the_windows_is_prompted():
    windows = Windows({"mujoco-pendulum": episodes([10])})
    keys = [key for batch in TaskBatches(windows, 10, num_batches=50, prompt_fraction=0.25) for key in batch]
    assert 0.15 < np.mean([key.prompted for key in keys]) < 0.35
    prompts = {key.prompted: windows[key]["prompt"] for key in keys}
    assert prompts == {True: "balance the pendulum on the cart", False: None}


def test_batches_are_a_function_of_seed_and_number():
    windows = Windows({"mujoco-pendulum": episodes([10, 20, 30])})
    first = list(TaskBatches(windows, 4, seed=1, num_batches=10))
    assert list(TaskBatches(windows, 4, seed=1, num_batches=5)) == first[:5]
    assert list(TaskBatches(windows, 4, seed=2, num_batches=10)) != first


def test_columns_of_every_domain(load_task):
    shapes = {
        "babyai-go-to-red-ball-no-dists": ("discrete_observations", (148,)),
        "metaworld-reach": ("continuous_observations", (39,)),
        "atari-pong": ("image_observations", (84, 84, 4)),
    }
    for task, (column, shape) in shapes.items():
        dataset = load_task(task)
        window = Windows({task: dataset}, window=8, image_window=2)[WindowKey(task, 0, 0)]
        assert window[column].shape[1:] == shape
        assert np.array_equal(window[column], np.array(dataset[0][column][: len(window["rewards"])]))
        if task.startswith("babyai"):
            assert window["text_observations"] == tuple(dataset[0]["text_observations"][: len(window["rewards"])])


def test_published_loss_weights():
    names = ["mujoco-ant", "mujoco-pendulum", "mujoco-doublependulum", "metaworld-reach", "atari-pong", "babyai-open"]
    assert [loss_weight(get_task(name)) for name in names] == [10, 50, 20, 50, 1, 1]


def test_data_that_cannot_be_trained_on_are_refused():
    dataset = episodes([5])
    with pytest.raises(ValueError, match="mujoco-pendulum: the data set lacks rewards"):
        Windows({"mujoco-pendulum": dataset.remove_columns("rewards")})
    with pytest.raises(ValueError, match="mujoco-pendulum: the data set has no episode"):
        Windows({"mujoco-pendulum": dataset.select([])})


def test_needs_no_torch():
    code = "import dataset_builder.mixing, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
