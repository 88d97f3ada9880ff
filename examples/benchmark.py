"""Time acting, training and the processor at the published size, beside a plain reference in the same run.

    python examples/benchmark.py            # all; a few minutes on 2 cores
    python examples/benchmark.py acting --precision float32

The reference does what the published code does, with the same modules. Acting: each step passes the last timestep
again with the new one (four tokens), in eager attention and plain linear layers, decodes the whole vocabulary and
predicts the next observation. Training: eager attention in float32. The floor of acting is the time to read the trunk's
weights once, at the bandwidth measured here; that of training the time of its matrix products, at the rate measured
here.

Medians of several runs after a warm-up. Close other programs: the machine's noise is in every figure.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from transformers import DynamicCache

from modeling_jat import JatConfig, JatModelForCausalLM
from modeling_jat.modeling_jat import TrunkLinear
from processing_jat import JatProcessor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FIRST_STEP, LAST_STEP = 50, 150  # of an episode; these are timed


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


def reference_step_ms(model: JatModelForCausalLM, kind: str) -> float:
    """A step as published: four tokens, all decoders, eager attention."""
    model.set_attn_implementation("eager")
    few_rows, TrunkLinear.FEW_ROWS = TrunkLinear.FEW_ROWS, 0
    cache, times = DynamicCache(), []
    with torch.no_grad():
        for t in range(LAST_STEP):
            length = 1 if t == 0 else 2
            inputs = {**observations(kind, 1, length), **actions(kind, 1, length)}
            begun = time.perf_counter()
            model(**inputs, past_key_values=cache, use_cache=True, return_loss=False)
            cache.crop(-2)
            times.append(1e3 * (time.perf_counter() - begun))
    model.set_attn_implementation("sdpa")
    TrunkLinear.FEW_ROWS = few_rows
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


def training_ms(model: JatModelForCausalLM, batch: dict[str, torch.Tensor], dtype: torch.dtype, runs: int) -> float:
    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    step()
    return median_ms(step, runs)


def row(name: str, *cells: str) -> None:
    print("| " + " | ".join([name.ljust(34), *(cell.rjust(12) for cell in cells)]) + " |", flush=True)


def header(*cells: str) -> None:
    row("", *cells)
    print("| " + "-" * 34 + " | " + " | ".join("-" * 11 + ":" for _ in cells) + " |")


def benchmark_acting(precisions: list[str]) -> None:
    header("reference", "ours", "ratio", "floor", "share", "32 at once")
    torch.manual_seed(0)
    model = JatModelForCausalLM(JatConfig.small()).eval()
    for kind in ("continuous", "discrete", "image"):
        reference = reference_step_ms(model, kind)
        for precision in precisions:
            dtype = PRECISIONS[precision]
            model.to(dtype)
            ours, batched = step_ms(model, kind), step_ms(model, kind, num_envs=32)
            trunk = sum(p.nbytes for name, p in model.transformer.named_parameters() if ".h." in f".{name}")
            floor = 1e3 * trunk / bandwidth(dtype)
            row(
                f"step, {kind}, {precision}", f"{reference:.1f} ms", f"{ours:.1f} ms", f"{reference / ours:.2f}",
                f"{floor:.1f} ms", f"{floor / ours:.0%}", f"{32 * ours / batched:.1f} x",
            )  # fmt: skip
            model.float()


def benchmark_training(precisions: list[str], runs: int) -> None:
    header("reference", "ours", "ratio", "floor", "share")
    torch.manual_seed(0)
    model = JatModelForCausalLM(JatConfig.small()).train()
    batches = {
        "continuous 4 x 256": {**observations("continuous", 4, 256), **actions("continuous", 4, 256)},
        "BabyAI 4 x 256": {**observations("discrete", 4, 256), **actions("discrete", 4, 256)},
        "Atari 4 x 32": {**observations("image", 4, 32), **actions("image", 4, 32)},
        "text 4 x 512": {"input_ids": torch.randint(0, 50257, (4, 512))},
    }
    trunk = sum(p.numel() for name, p in model.transformer.named_parameters() if ".h." in f".{name}" and p.ndim == 2)
    for name, batch in batches.items():
        first = next(iter(batch.values()))
        tokens = first.shape[0] * first.shape[1] * (1 if "input_ids" in batch else 2)
        # A decoder over the vocabulary runs for every text token, or for every observation token.
        vocabulary = 0 if "continuous_actions" in batch else 50257 * 768 * (1 if "input_ids" in batch else 0.5)
        model.set_attn_implementation("eager")
        reference = training_ms(model, batch, torch.float32, runs)
        model.set_attn_implementation("sdpa")
        for precision in precisions:
            dtype = PRECISIONS[precision]
            ours = training_ms(model, batch, dtype, runs)
            floor = 1e3 * 6 * (trunk + vocabulary) * tokens / matrix_rate(dtype)
            row(
                f"{name}, {precision}", f"{reference:.0f} ms", f"{ours:.0f} ms", f"{reference / ours:.2f}",
                f"{floor:.0f} ms", f"{floor / ours:.0%}",
            )  # fmt: skip


def benchmark_processor(runs: int) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="acting, training, processor; default: all")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--runs", type=int, default=3, help="of each training step")
    args = parser.parse_args()
    parts = args.parts or ["acting", "training", "processor"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "acting" in parts:
        benchmark_acting(args.precision)
    if "training" in parts:
        benchmark_training(args.precision, args.runs)
    if "processor" in parts:
        benchmark_processor(args.runs)


if __name__ == "__main__":
    main()
