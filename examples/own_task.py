"""A task of your own: any environment of gymnasium, with any function or policy as its expert.

    python -m dataset_builder build --register examples/own_task.py --tasks cartpole --episodes 100 --output data
    python examples/train.py --register examples/own_task.py --data data --tasks cartpole --output jat
    python examples/evaluate.py --register examples/own_task.py --model jat --tasks cartpole

`--register` runs this file, which adds a row to the table of tasks. In a script of your own, call `register_task`
before anything else. `dataset_builder/envs/custom.py` says what becomes of which observations.
"""

import numpy as np

from dataset_builder import TaskSpec, register_task


def balance(observation: dict[str, np.ndarray]) -> int:
    """Push the cart under the pole: where it leans and falls to, and a little towards the middle."""
    position, velocity, angle, angular_velocity = observation["continuous_observation"]
    return int(angle + 0.5 * angular_velocity + 0.05 * position + 0.1 * velocity > 0)


register_task(
    TaskSpec(
        name="cartpole",
        env_id="CartPole-v1",
        instruction="balance the pole on the cart",
        expert=balance,
    )
)
