import pytest

from dataset_builder import TaskSpec, get_task, make_env, register_task, select_tasks, tasks


@pytest.mark.parametrize(
    ("patterns", "count"),
    [("all", 157), ("mujoco", 11), ("babyai-go-to-*", 10), (["mujoco", "mujoco-ant"], 11), ("metaworld-reach", 1)],
)
def test_select_tasks(patterns, count):
    assert len(select_tasks(patterns)) == count


def test_an_unknown_task_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'metaword-reach'.*metaworld-reach"):
        select_tasks(["mujoco", "metaword-reach"])
    with pytest.raises(ValueError, match=r"'mujoco-hoper'.*mujoco-hopper"):
        make_env("mujoco-hoper")


def test_register_task(monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    columns = ("continuous_observations", "continuous_actions", "rewards")
    own = TaskSpec(name="my-cheetah", domain="mujoco", env_id="HalfCheetah-v5", instruction="run", columns=columns)
    register_task(own)
    assert get_task("my-cheetah") is own
    assert make_env("my-cheetah").reset(seed=0)[0]["continuous_observation"].shape == (17,)
    with pytest.raises(ValueError, match="exists already"):
        register_task(own)
