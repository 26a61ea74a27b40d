"""How much of this machine's own matrix-product rate decoding and training reach.

    python benchmarks/roofline.py

The rate is measured in the same run: the best of a few square float32 products (sgemm), before and after each
measurement. Operations counted are those that the weights and the attention need, and no others:

- a token that is decoded or prefilled: 2 a weight of the blocks, 2 a weight of the head where logits are computed, and
  4 * Hq * D a layer and position attended to;
- a token that is trained on: three times the same (forward, and two products backward). What Ponder computes twice to
  save memory (the head, for logits that are not kept) counts once.

The share says what a perfect program could still gain: with 0.6, less than a factor of 1.7.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measure import save, table
from models import MODELS, BenchmarkModel, prepared

if TYPE_CHECKING:
    from ponder.model.config import DecoderConfig

SHAPES = {"mini": (8, 16, 128), "smollm2-135m": (8, 8, 64)}
"""Prompts, samples a prompt and new tokens, by model."""


def sgemm_rate() -> float:
    """The best rate of this moment, in floating-point operations a second."""
    import torch

    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        a @ b
        for _ in range(5):
            started = time.perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def block_operations(config: DecoderConfig, tokens: int, attended: int) -> int:
    """Forward operations of the blocks for `tokens` tokens that attend to `attended` positions in all."""
    c = config
    attention = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim * c.hidden_size
    weights = attention + 3 * c.hidden_size * c.intermediate_size
    return c.num_layers * (2 * weights * tokens + 4 * c.num_heads * c.head_dim * attended)


def head_operations(config: DecoderConfig, tokens: int) -> int:
    """Forward operations of the logits of `tokens` tokens."""
    return 2 * config.hidden_size * config.vocab_size * tokens


def positions_attended(start: int, tokens: int) -> int:
    """Positions that `tokens` tokens attend to when the first of them stands at position `start`, causally."""
    return sum(range(start + 1, start + tokens + 1))


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Shares for one model: median over the repeats of rate reached / rate possible."""
    import torch

    from ponder.recipe import AlgorithmSettings, OptimizerSettings
    from ponder.rollout.base import Request, Sampling
    from ponder.rollout.native import NativeEngine
    from ponder.training.optimizer import Optimizer
    from ponder.training.packing import Example
    from ponder.training.update import Trajectory, policy_step

    if options.threads:
        torch.set_num_threads(options.threads)
    model, (num_prompts, group, new) = BenchmarkModel(name), SHAPES[name]
    decoder, prompts = model.decoder(), model.prompt_ids(num_prompts)
    config = decoder.config
    requests = [Request(ids, str(i), group) for i, ids in enumerate(prompts)]
    engine, sampling = NativeEngine(decoder), Sampling(new)
    optimizer = Optimizer(decoder, OptimizerSettings(lr=1e-6), options.repeats + 1)

    # the last token drawn is never fed back, so new - 1 tokens a sequence go through the blocks
    samples = num_prompts * group
    decoded = sum(positions_attended(len(ids), new - 1) for ids in prompts) * group
    prefilled = sum(positions_attended(0, len(ids)) for ids in prompts)
    prompt_tokens = sum(map(len, prompts))
    blocks = block_operations(config, prompt_tokens + samples * (new - 1), prefilled + decoded)
    decode_work = blocks + head_operations(config, num_prompts + samples * (new - 1))
    # training computes a prompt once a group, and the logits of every reply token
    trained = sum(positions_attended(len(ids), new) for ids in prompts) * group
    train_blocks = block_operations(config, prompt_tokens + samples * new, prefilled + trained)
    train_work = 3 * (train_blocks + head_operations(config, samples * new))

    groups = engine.generate(requests, sampling, seed=0)
    trajectories = [
        Trajectory(Example(ids, tuple(c.ids)), c.logprobs, 1.0 if s % 2 else -1.0)
        for ids, completions in zip(prompts, groups, strict=True)
        for s, c in enumerate(completions)
    ]

    def decode() -> None:
        engine.generate(requests, sampling, seed=1)

    def train() -> None:
        policy_step(
            decoder,
            optimizer,
            trajectories,
            AlgorithmSettings(),
            temperature=1.0,
            max_tokens=new,
            budget=options.budget,
        )

    return {
        "model": name,
        "tokens": samples * new,
        "decode": share_of_rate(decode, decode_work, options.repeats),
        "train": share_of_rate(train, train_work, options.repeats),
    }


def share_of_rate(work: Callable[[], None], operations: int, repeats: int) -> dict[str, float]:
    """Medians: seconds, GFLOP/s reached and possible, and their ratio round by round."""
    work()
    rounds = []
    for _ in range(repeats):
        before = sgemm_rate()
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        possible = (before + sgemm_rate()) / 2
        rounds.append((seconds, operations / seconds, possible, operations / seconds / possible))
    names = ("seconds", "reached", "possible", "share")
    return {name: median(values) for name, values in zip(names, zip(*rounds, strict=True), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--budget", type=int, default=8192, help="tokens a micro-batch of the update (default: 8192)")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()
    for name in options.model:
        prepared(name)
    results = [measure(options, name) for name in options.model]
    rows = [
        [
            f"{result['model']} {kind}",
            f"{result['tokens'] / result[kind]['seconds']:.0f}",
            f"{result[kind]['reached'] / 1e9:.1f}",
            f"{result[kind]['possible'] / 1e9:.1f}",
            f"{result[kind]['share']:.2f}",
        ]
        for result in results
        for kind in ("decode", "train")
    ]
    print("float32, medians")
    print(table(["what", "tokens/s", "GFLOP/s", "sgemm GFLOP/s", "share"], rows))
    save("roofline", options.json, options, {"results": results})


if __name__ == "__main__":
    main()
