"""Play one episode with a JAT.

python examples/quickstart.py --model demo/jat --task metaworld-reach
"""

import argparse

from transformers import AutoModel, AutoProcessor

import modeling_jat  # noqa: F401  registers the model
import processing_jat  # noqa: F401  registers the processor
from dataset_builder import make_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/jat", help="folder or Hub repository of a JAT")
    parser.add_argument("--task", default="metaworld-reach")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = AutoModel.from_pretrained(args.model)
    processor = AutoProcessor.from_pretrained(args.model)
    env = make_env(args.task)

    observation, info = env.reset(seed=args.seed)
    model.reset(env.action_space)
    action = model.get_next_action(processor(observation))
    total, timesteps, success, done = 0.0, 0, False, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(action)
        total, timesteps, success = total + float(reward), timesteps + 1, success or info.get("success", False)
        done = terminated or truncated
        action = model.get_next_action(processor(observation, reward=reward))
    print(f"{args.task}: return {total:.2f} over {timesteps} timesteps{', success' if success else ''}")


if __name__ == "__main__":
    main()
