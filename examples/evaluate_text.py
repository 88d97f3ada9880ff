"""Evaluate a JAT on the held-out rows of text subsets: how well it predicts them, and what it writes.

    python examples/evaluate_text.py --model jat --data data --tasks ok-vqa wikipedia

Prints, and writes to `text_evaluation.json` in the folder --output, by default that of a local model:

- perplexity and accuracy of the next token, over all tokens of the texts;
- of rows with an image, the share whose text the model writes exactly, from the image alone and likeliest token first;
- some of what it writes: from the image, or from the first half of a text.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

import modeling_jat  # noqa: F401  registers the model
import processing_jat  # noqa: F401  registers the processor
from dataset_builder import register_from, select_tasks
from dataset_builder.cards import TEXT_EVALUATION
from dataset_builder.shards import whole_file

SAMPLES = 5


@torch.inference_mode()
def predict(model: Any, processor: Any, rows: list[dict[str, Any]]) -> tuple[float, int, int]:
    """Sum of the losses of the next tokens of some rows, how many of them are right, and how many there are."""
    batch = processor.pad(rows, truncation=True)
    tokens, mask = batch["input_ids"], batch["attention_mask"].bool()
    logits = model(**batch, return_loss=False).logits
    # What stands before the text, an image's last patch, predicts its first token.
    predicted, wanted, counted = logits[:, -tokens.shape[1] - 1 : -1], tokens, mask
    if predicted.shape[1] < tokens.shape[1]:
        wanted, counted = tokens[:, 1:], mask[:, 1:]
    losses = torch.nn.functional.cross_entropy(predicted.float().transpose(1, 2), wanted, reduction="none")
    right = predicted.argmax(-1) == wanted
    return float(losses[counted].sum()), int(right[counted].sum()), int(counted.sum())


def write(model: Any, processor: Any, row: dict[str, Any], max_new_tokens: int) -> tuple[str, str]:
    """What the model is given of a row's text, nothing where there is an image, and how it goes on."""
    if "images" in row:
        given, inputs = "", processor(images=[row["images"]], return_tensors="pt")
    else:
        words = row["text"].split(" ")
        given = " ".join(words[: (len(words) + 1) // 2])
        inputs = processor(text=given, return_tensors="pt")
    length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    taken = length + (model.config.num_patches if "images" in row else 0)
    room = model.config.max_position_embeddings - taken + 1  # the last token that is written takes no position
    tokens = model.generate(**inputs, max_new_tokens=min(max_new_tokens, room), do_sample=False)
    return given, processor.tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


def evaluate(model: Any, processor: Any, dataset: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    rows = dataset.select(range(min(args.rows, len(dataset))))
    total, right, count = 0.0, 0, 0
    for start in tqdm(range(0, len(rows), args.batch_size), unit="batch"):
        part = [rows[index] for index in range(start, min(start + args.batch_size, len(rows)))]
        found = predict(model, processor, part)
        total, right, count = total + found[0], right + found[1], count + found[2]
    scores = {"rows": len(rows), "perplexity": math.exp(total / count), "next_token_accuracy": right / count}
    has_images = "images" in dataset.column_names
    written = rows if has_images else rows.take(min(SAMPLES, len(rows)))
    texts = [write(model, processor, row, args.max_new_tokens) for row in tqdm(written, unit="text")]
    if has_images:
        exact = [text == row["text"] for (_, text), row in zip(texts, rows, strict=True)]
        scores["written_exactly"] = sum(exact) / len(exact)
    scores["samples"] = [
        {"given": given, "written": text, "expected": row["text"]}
        for (given, text), row in zip(texts[:SAMPLES], written, strict=False)
    ]
    return scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub repository of a JAT")
    parser.add_argument("--data", required=True, help="folder or Hub repository of data sets")
    parser.add_argument("--tasks", nargs="+", required=True, help="text subsets")
    parser.add_argument("--rows", type=int, default=500, help="of each subset's test rows, at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, help="default: a local model's folder, or 'evaluation'")
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    for module in args.register:
        register_from(module)
    try:
        tasks = select_tasks(args.tasks)
        if others := [task.name for task in tasks if task.domain != "text"]:
            raise ValueError(f"expected text subsets, got {', '.join(others)}: examples/evaluate.py plays those")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model = AutoModel.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    found = {}
    for task in tasks:
        found[task.name] = evaluate(model, processor, load_dataset(args.data, task.name, split="test"), args)
        figures = {name: f"{value:.3g}" for name, value in found[task.name].items() if name != "samples"}
        print(f"{task.name}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))
        for sample in found[task.name]["samples"]:
            print(f"  {sample['given'] or '[image]'} -> {sample['written']!r} (expected {sample['expected']!r})")
    output = args.output or (Path(args.model) if Path(args.model).is_dir() else Path("evaluation"))
    output.mkdir(parents=True, exist_ok=True)
    with whole_file(output / TEXT_EVALUATION) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
