import numpy as np
import pytest

from dataset_builder import Episode, get_task, load_expert, make_env, rollout
from dataset_builder.episodes import check_row
from dataset_builder.rollout import episode_seed

REACH = get_task("metaworld-reach")


class Constant:
    """A policy that always returns the same action."""

    def __init__(self, action):
        self.action = action

    def reset(self, env, seed):
        pass

    def act(self, observation, reward):
        return self.action


def test_an_episode():
    env = make_env(REACH)
    episode = rollout(env, load_expert(REACH), seed=3)
    assert len(episode) == 500
    assert episode.success is True
    assert not episode.terminated
    assert episode.observations["continuous_observation"].shape == (500, 39)
    assert episode.score == pytest.approx(float(episode.rewards[:100].sum()), rel=1e-6)
    assert episode.total_reward > episode.score
    assert "metaworld-reach, seed=3, 500 timesteps" in repr(episode)


def test_observations_need_not_be_kept():
    env = make_env("mujoco-reacher")
    policy = load_expert("mujoco-reacher")
    kept, light = (rollout(env, policy, 0, keep_observations=keep) for keep in (True, False))
    assert light.observations == {}
    assert np.array_equal(light.rewards, kept.rewards)


def test_observation_action_and_reward_stand_beside_each_other():
    env = make_env("mujoco-reacher")
    policy = load_expert("mujoco-reacher")
    episode = rollout(env, policy, seed=0)
    observation, _ = env.reset(seed=0)
    for t in range(len(episode)):
        assert np.array_equal(episode.observations["continuous_observation"][t], observation["continuous_observation"])
        assert np.array_equal(episode.actions[t], np.clip(policy.act(observation, None), -1, 1))
        observation, reward, *_ = env.step(episode.actions[t])
        assert episode.rewards[t] == np.float32(reward)


def test_actions_are_stored_as_executed():
    env = make_env("mujoco-pendulum", max_episode_steps=3)
    assert rollout(env, Constant(np.array([50.0])), seed=0).actions.max() == 3.0


@pytest.mark.parametrize(
    ("task", "action", "message"),
    [
        ("mujoco-pendulum", np.zeros(2), r"expected an action of shape \(1,\)"),
        ("mujoco-pendulum", np.array([np.nan]), "finite values"),
        ("babyai-go-to-local", 7, r"expected an action of Discrete\(7\), got 7"),
    ],
)
def test_impossible_actions_are_refused(task, action, message):
    with pytest.raises(ValueError, match=message):
        rollout(make_env(task), Constant(action), seed=0)


def test_seeds_are_unrelated():
    seeds = {
        episode_seed(task, index, base, purpose=purpose)
        for task in ("metaworld-reach", "metaworld-push")
        for index in range(50)
        for base in (0, 1)
        for purpose in ("build", "evaluate")
    }
    assert len(seeds) == 400


def row(length=4):
    return {
        "continuous_observations": np.zeros((length, 39), np.float32),
        "continuous_actions": np.zeros((length, 4), np.float32),
        "rewards": np.zeros(length, np.float32),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("rewards"), "column 'rewards' is missing"),
        (lambda r: r.update(images=1), "column 'images' is unknown"),
        (lambda r: r.update(rewards=np.zeros(3, np.float32)), "columns differ in length"),
        (lambda r: r.update(rewards=np.zeros(4)), "must be an array of float32 .* got float64"),
        (lambda r: r.update(continuous_actions=[[0.0] * 4] * 4), "got list"),
        (lambda r: r["continuous_observations"].__setitem__((2, 0), np.nan), "not finite at timestep 2"),
        (lambda r: r.update(row(0)), "it has no timestep"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change, message):
    values = row()
    check_row(values, REACH, where="episode 0")
    change(values)
    with pytest.raises(ValueError, match=f"metaworld-reach, episode 0: .*{message}"):
        check_row(values, REACH, where="episode 0")


def test_an_episode_checks_itself():
    values = row()
    observations = {"continuous_observation": values["continuous_observations"]}
    with pytest.raises(ValueError, match=r"seed 7.*differ in length"):
        Episode(
            task=REACH,
            seed=7,
            observations=observations,
            actions=values["continuous_actions"],
            rewards=np.zeros(3, np.float32),
            terminated=False,
        )
