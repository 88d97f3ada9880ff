"""Play one episode with a JAT: by default with jat-mini, which comes with the package.

python examples/quickstart.py --task metaworld-reach --prompt
python examples/quickstart.py --task metaworld-reach --model demo/jat
"""

import argparse

from transformers import AutoModel, AutoProcessor

import processing_jat  # noqa: F401  registers the processor
from dataset_builder import make_env
from modeling_jat import pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=pretrained("jat-mini"), help="folder or Hub repository of a JAT")
    parser.add_argument("--task", default="metaworld-reach")
    parser.add_argument("--prompt", action="store_true", help="tell the model the task's instruction")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = AutoModel.from_pretrained(args.model)
    processor = AutoProcessor.from_pretrained(args.model)
    env = make_env(args.task)

    observation, info = env.reset(seed=args.seed)
    prompt = processor(text=env.task.instruction, return_tensors="pt") if args.prompt else None
    model.reset(env.action_space, prompt=prompt)
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
