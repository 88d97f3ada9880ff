"""The world side of JAT: tasks, environments, experts, episodes, data sets and scores."""

from .envs import make_env, make_vec_env
from .episodes import Episode, Episodes, load_episodes, task_features
from .evaluation import evaluate
from .experts import MissingExpertError, load_expert
from .rollout import Policy, rollout
from .tasks import TaskSpec, get_task, register_from, register_task, select_tasks

__all__ = [
    "Episode",
    "Episodes",
    "MissingExpertError",
    "Policy",
    "TaskSpec",
    "evaluate",
    "get_task",
    "load_episodes",
    "load_expert",
    "make_env",
    "make_vec_env",
    "register_from",
    "register_task",
    "rollout",
    "select_tasks",
    "task_features",
]
