"""Time acting, evaluation, training and the processor at the published size, beside a plain reference in the same run.

    python examples/benchmark.py            # all; more than half an hour on 2 cores
    python examples/benchmark.py sizes      # the table of parameters
    python examples/benchmark.py acting --precision float32
    python examples/benchmark.py agent --precision float32 bfloat16 float16    # jat-mini's actions per second

The reference does what the published code does, with the same modules, in float32: attention in separate steps with two
masks, an activation in separate steps, discrete observations embedded at full width and then reduced, the loss over
whole scores. A step of acting passes the last timestep again with the new one (four tokens), decodes the whole
vocabulary and predicts the next observation. The floor of acting is the time to read the trunk's weights once, at the
bandwidth measured here; that of training the time of its matrix products, at the rate measured here.

The agent is timed with its processor and its prompt, on observations of random play, without the environments.

Evaluation is timed as examples/evaluate.py does it, environments and processor included: steps per second with one
environment, and with 32 in one process and in two.

Ours trains, prepares batches, and plays as jat-mini, with the memory settings of examples/train.py and evaluate.py.

Each line is measured in a process of its own; times are medians after a warm-up, memory is the process's peak. Close
other programs: the machine's noise is in every figure.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import PRECISIONS, AgentPlayer, load_agent
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.activations import ACT2FN
from transformers.masking_utils import eager_mask

from dataset_builder import get_task, make_env
from dataset_builder.evaluation import AgentPolicy, Trial, run_trials, stack_observations
from dataset_builder.executors import keep_freed_memory
from modeling_jat import JatConfig, JatModelForCausalLM, modeling_jat, pretrained
from processing_jat import JatProcessor

PARTS = ["sizes", "acting", "agent", "evaluation", "training", "processor"]
FIRST_STEP, LAST_STEP = 50, 150  # of an episode; these are timed
EVALUATED = ("atari-pong", "babyai-go-to", "metaworld-reach")


def observations(kind: str, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random observations and rewards of one kind: Meta-World's, BabyAI's or Atari's shapes."""
    rewards = torch.randn(batch, length)
    if kind == "continuous":
        return {"continuous_observations": torch.randn(batch, length, 39), "rewards": rewards}
    if kind == "discrete":
        return {"discrete_observations": torch.randint(0, 10, (batch, length, 212)), "rewards": rewards}
    return {"image_observations": torch.rand(batch, length, 4, 84, 84) * 2 - 1, "rewards": rewards}


def actions(kind: str, batch: int, length: int) -> dict[str, torch.Tensor]:
    if kind == "continuous":
        return {"continuous_actions": torch.rand(batch, length, 4) * 2 - 1}
    return {"discrete_actions": torch.randint(0, 7, (batch, length))}


def median_ms(run: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def bandwidth(dtype: torch.dtype) -> float:
    """Bytes a second that a product of a large matrix with a vector reads."""
    matrix, vector = torch.randn(8192, 8192).to(dtype), torch.randn(8192).to(dtype)
    matrix @ vector
    return matrix.nbytes / (1e-3 * median_ms(lambda: matrix @ vector, 20))


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    a @ b
    return 2 * 2048**3 / (1e-3 * median_ms(lambda: a @ b, 10))


def published_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """GPT-Neo's attention when JAT was published: its own causal mask, then the one of the padding."""
    weights = query.float() @ key.float().transpose(-1, -2)
    length = key.shape[-2]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if module.sliding_window is not None:
        allowed = allowed ^ allowed.tril(-module.sliding_window)
    weights = torch.where(allowed[length - query.shape[-2] :], weights, torch.finfo(torch.float32).min)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class PublishedCrossEntropy:
    @staticmethod
    def apply(scores: Tensor, classes: Tensor) -> Tensor:
        real = classes >= 0
        losses = torch.zeros(len(scores))
        losses[real] = F.cross_entropy(scores[real], classes[real], reduction="none")
        return losses


class PublishedModel(JatModelForCausalLM):
    """Computes what ours does in the steps of the published code."""

    def __init__(self, config: JatConfig) -> None:
        AttentionInterface.register("published", published_attention)
        AttentionMaskInterface.register("published", eager_mask)
        modeling_jat.TrunkLinear.FEW_ROWS = 0
        modeling_jat.ContinuousEncoder.FEW_ROWS = float("inf")
        modeling_jat.CrossEntropy = PublishedCrossEntropy
        config.normed_embeddings = False
        super().__init__(config)
        self.set_attn_implementation("published")
        for block in self.transformer.h:
            block.mlp.act = ACT2FN["gelu_new"]

    def _embed_discrete_observations(self, observations: Tensor) -> Tensor:
        return self.multi_discrete_encoder(self.transformer.wte(observations))


def published_step_ms(model: JatModelForCausalLM, kind: str) -> float:
    cache, times = DynamicCache(), []
    with torch.no_grad():
        for t in range(LAST_STEP):
            length = 1 if t == 0 else 2
            inputs = {**observations(kind, 1, length), **actions(kind, 1, length)}
            begun = time.perf_counter()
            model(**inputs, cache=cache, use_cache=True, return_loss=False)
            cache.crop(-2)
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[FIRST_STEP:])


def step_ms(model: JatModelForCausalLM, kind: str, num_envs: int | None = None) -> float:
    """A step of `get_next_action`."""
    space = spaces.Box(-1, 1, (4,)) if kind == "continuous" else spaces.Discrete(7)
    context, times = model.reset(space, num_envs), []
    for _ in range(LAST_STEP):
        inputs = observations(kind, num_envs or 1, 1)
        begun = time.perf_counter()
        model.get_next_action(inputs, context)
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[FIRST_STEP:])


def training_ms(model: JatModelForCausalLM, batch: dict[str, Tensor], dtype: torch.dtype, runs: int) -> float:
    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    step()
    return median_ms(step, runs)


def apart(measure: Callable[..., float], *args: Any) -> tuple[float, int]:
    """A measurement in a process of its own, and the most memory that the process took, in MB."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, measure, args).result()


def _measured(measure: Callable[..., float], args: tuple[Any, ...]) -> tuple[float, int]:
    torch.manual_seed(0)
    result = measure(*args)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def acting(kind: str, precision: str, num_envs: int | None) -> float:
    model = JatModelForCausalLM(JatConfig.small()).eval().to(PRECISIONS[precision])
    return step_ms(model, kind, num_envs)


def published_acting(kind: str) -> float:
    return published_step_ms(PublishedModel(JatConfig.small()).eval(), kind)


def forgetting(precision: str) -> float:
    """The step at which a full window forgets its older half, beyond what other steps take."""
    model = JatModelForCausalLM(JatConfig.small()).eval().to(PRECISIONS[precision])
    context, inputs, times = model.reset(spaces.Box(-1, 1, (4,))), observations("continuous", 1, 1), []
    for _ in range(context.window + 1):
        begun = time.perf_counter()
        model.get_next_action(inputs, context)
        times.append(1e3 * (time.perf_counter() - begun))
    return times[-1] - statistics.median(times)


def agent(task: str, precision: str, num_envs: int | None) -> float:
    """A step of jat-mini, told its task, in one environment or in many that look alike."""
    keep_freed_memory()
    policy = AgentPolicy(*load_agent(str(pretrained("jat-mini")), precision, "cpu"), prompted=True)
    times = []
    with make_env(task) as env:
        env.action_space.seed(0)
        env.reset(seed=0)
        policy.begin(env, num_envs)
        for _ in range(LAST_STEP):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                observation, _ = env.reset()
            if num_envs is None:
                act = partial(policy.act, observation, 0.0)
            else:
                batch = stack_observations([observation] * num_envs)
                act = partial(policy.act_batch, batch, np.zeros(num_envs, np.float32))
            times.append(median_ms(act, 1))
    return statistics.median(times[FIRST_STEP:])


TRAINING_BATCHES = {"continuous": (4, 256), "discrete": (4, 256), "image": (4, 32), "text": (4, 512)}


def training(kind: str, precision: str, runs: int, model_class: type[JatModelForCausalLM]) -> float:
    if model_class is JatModelForCausalLM:
        keep_freed_memory()
    model = model_class(JatConfig.small()).train()
    shape = TRAINING_BATCHES[kind]
    if kind == "text":
        batch = {"input_ids": torch.randint(0, model.config.vocab_size, shape)}
    else:
        batch = {**observations(kind, *shape), **actions(kind, *shape)}
    batch["attention_mask"] = torch.ones(shape, dtype=torch.long)
    return training_ms(model, batch, PRECISIONS[precision], runs)


def evaluation(task: str, model: str, precision: str, num_envs: int, num_workers: int) -> float:
    """Timesteps a second of an evaluation, from when all of its processes play to its end."""
    player = AgentPlayer(
        model=model,
        weights="random",
        dtype=precision,
        device="cpu",
        num_envs=num_envs // num_workers,
        num_threads=torch.get_num_threads() // num_workers,
    )
    trial = Trial(get_task(task), player, episodes=4 * num_envs, max_episode_steps=LAST_STEP)
    with tempfile.TemporaryDirectory() as folder:
        [(_, score)] = run_trials([trial], Path(folder) / "log.jsonl", num_workers=num_workers, progress=False)
    # An episode's seconds are its share of its process's time.
    seconds = sum(episode.seconds for episode in score.episodes) / num_workers
    return sum(episode.timesteps for episode in score.episodes) / seconds


def row(name: str, *cells: str) -> None:
    print("| " + " | ".join([name.ljust(34), *(cell.rjust(12) for cell in cells)]) + " |", flush=True)


def header(*cells: str) -> None:
    row("", *cells)
    print("| " + "-" * 34 + " | " + " | ".join("-" * 11 + ":" for _ in cells) + " |")


def benchmark_acting(precisions: list[str]) -> None:
    header("published", "ours", "ratio", "floor", "share", "memory", "32 at once")
    trunk = trunk_weights()
    for kind in ("continuous", "discrete", "image"):
        reference, reference_memory = apart(published_acting, kind)
        for precision in precisions:
            ours, memory = apart(acting, kind, precision, None)
            batched, _ = apart(acting, kind, precision, 32)
            floor = 1e3 * trunk * PRECISIONS[precision].itemsize / bandwidth(PRECISIONS[precision])
            row(
                f"step, {kind}, {precision}", f"{reference:.1f} ms", f"{ours:.1f} ms", f"{reference / ours:.2f}",
                f"{floor:.1f} ms", f"{floor / ours:.0%}", f"{memory / reference_memory:.2f}",
                f"{32 * ours / batched:.1f} x",
            )  # fmt: skip
    half = JatConfig.small().max_position_embeddings // 4  # timesteps
    for precision in precisions:
        cost, _ = apart(forgetting, precision)
        print(f"forgetting half a window, {precision}: {cost:.0f} ms every {half} steps, {cost / half:.1f} ms a step")


def benchmark_agent(precisions: list[str]) -> None:
    header("1", "32")
    for task in EVALUATED:
        for precision in precisions:
            one, many = (apart(agent, task, precision, num_envs)[0] for num_envs in (None, 32))
            row(f"{task}, {precision}", f"{1e3 / one:,.0f} steps/s", f"{32e3 / many:,.0f} steps/s")


def benchmark_evaluation(precisions: list[str]) -> None:
    header("1", "32", "ratio", "2 x 16", "ratio")
    processor = JatProcessor.from_texts(["reach the goal"], 300)
    with tempfile.TemporaryDirectory() as folder:
        JatModelForCausalLM(JatConfig.small()).save_pretrained(folder)
        processor.save_pretrained(folder)
        for task in EVALUATED:
            for precision in precisions:
                one, at_once, in_two = (
                    apart(evaluation, task, folder, precision, num_envs, num_workers)[0]
                    for num_envs, num_workers in ((1, 1), (32, 1), (32, 2))
                )
                row(
                    f"{task}, {precision}", f"{one:.0f} steps/s", f"{at_once:.0f} steps/s", f"{at_once / one:.1f}",
                    f"{in_two:.0f} steps/s", f"{in_two / one:.1f}",
                )  # fmt: skip


def benchmark_training(precisions: list[str], runs: int) -> None:
    header("published", "ours", "ratio", "floor", "share", "published MB", "ours MB", "memory")
    trunk, config = trunk_weights(), JatConfig.small()
    for kind, (batch_size, length) in TRAINING_BATCHES.items():
        tokens = batch_size * length * (1 if kind == "text" else 2)
        # The vocabulary is scored for every text token, or for every observation token where actions are discrete.
        scored = {"continuous": 0, "text": 1}.get(kind, 0.5) * config.vocab_size * config.hidden_size
        reference, reference_memory = apart(training, kind, "float32", runs, PublishedModel)
        for precision in precisions:
            ours, memory = apart(training, kind, precision, runs, JatModelForCausalLM)
            floor = 1e3 * 6 * (trunk + scored) * tokens / matrix_rate(PRECISIONS[precision])
            row(
                f"{kind} {batch_size} x {length}, {precision}", f"{reference:.0f} ms", f"{ours:.0f} ms",
                f"{reference / ours:.2f}", f"{floor:.0f} ms", f"{floor / ours:.0%}", f"{reference_memory:,}",
                f"{memory:,}", f"{memory / reference_memory:.2f}",
            )  # fmt: skip


def trunk_weights() -> int:
    with torch.device("meta"):
        blocks = JatModelForCausalLM(JatConfig.small()).transformer.h
    return sum(weight.numel() for weight in blocks.parameters())


def benchmark_processor(runs: int) -> None:
    keep_freed_memory()
    header("timesteps/s")
    processor = JatProcessor.from_texts(["reach the goal"], 300)
    rng = np.random.default_rng(0)
    vectors = {
        "continuous_observations": [rng.normal(size=(256, 39)).astype(np.float32) for _ in range(16)],
        "continuous_actions": [rng.normal(size=(256, 4)).astype(np.float32) for _ in range(16)],
        "rewards": [rng.normal(size=256).astype(np.float32) for _ in range(16)],
    }
    frames = {
        "image_observations": [rng.integers(0, 256, (32, 84, 84, 4), dtype=np.uint8) for _ in range(16)],
        "discrete_actions": [rng.integers(0, 6, 32) for _ in range(16)],
        "rewards": [rng.normal(size=32).astype(np.float32) for _ in range(16)],
    }
    pixels = JatProcessor(processor.image_processor, processor.tokenizer, rescale_observations=False)
    for name, batch, process in (
        ("processor, Meta-World", vectors, processor),
        ("processor, Atari, floats", frames, processor),
        ("processor, Atari, pixels", frames, pixels),
    ):
        ms = median_ms(lambda batch=batch, process=process: process(**batch, return_tensors="pt"), 5 * runs)
        row(name, f"{1e3 * sum(map(len, batch['rewards'])) / ms:,.0f}")


def benchmark_sizes() -> None:
    """Parameters of the presets; nothing is timed."""
    header("layers", "width", "heads", "positions", "trunk", "tokens", "rest", "all")
    for preset in ("mini", "small", "medium", "large"):
        config = getattr(JatConfig, preset)()
        with torch.device("meta"):
            model = JatModelForCausalLM(config)
        trunk = sum(weight.numel() for weight in model.transformer.h.parameters())
        tokens = 2 * config.vocab_size * config.hidden_size  # their embeddings and their decoder
        total = model.num_parameters()
        sizes = (config.num_layers, config.hidden_size, config.num_heads, config.max_position_embeddings)
        weights = (trunk, tokens, total - trunk - tokens, total)
        row(f"JatConfig.{preset}()", *map(str, sizes), *(f"{number / 1e6:.1f}M" for number in weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, help="default: all")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3, help="of each training step")
    args = parser.parse_args()
    parts = args.parts or PARTS
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "sizes" in parts:
        benchmark_sizes()
    if "acting" in parts:
        benchmark_acting(args.precision)
    if "agent" in parts:
        benchmark_agent(args.precision)
    if "evaluation" in parts:
        benchmark_evaluation(args.precision)
    if "training" in parts:
        benchmark_training(args.precision, args.runs)
    if "processor" in parts:
        benchmark_processor(args.runs)


if __name__ == "__main__":
    main()
