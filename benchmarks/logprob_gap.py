"""The gap between sampling and training: max |log-probability when sampled - when trained on|, on policy.

    python benchmarks/logprob_gap.py

The same weights sample a batch of completions, one token at a time over a cache of keys and values, and compute the
log-probabilities of the same tokens in one packed pass, as the update step does. Equal weights make them equal up to
the rounding of float32, whatever the temperature; the policy ratio is then 1, as the algorithm assumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measure import save, table
from models import MODELS, BenchmarkModel, prepared


def gap(options: argparse.Namespace, name: str, temperature: float) -> dict[str, Any]:
    """Largest and mean absolute difference, in nats, over all sampled tokens."""
    import torch

    from ponder.rollout.base import Request, Sampling
    from ponder.rollout.native import NativeEngine
    from ponder.training.packing import Example, micro_batches
    from ponder.training.update import frozen_logprobs

    torch.set_num_threads(options.threads or torch.get_num_threads())
    model = BenchmarkModel(name)
    decoder = model.decoder()
    prompts = model.prompt_ids(options.prompts)
    requests = [Request(ids, str(i), options.group) for i, ids in enumerate(prompts)]
    sampling = Sampling(options.tokens, temperature=temperature, stop_ids=decoder.config.eos_ids)
    groups = NativeEngine(decoder).generate(requests, sampling, seed=0)
    pairs = [(ids, completion) for ids, group in zip(prompts, groups, strict=True) for completion in group]
    examples = [Example(ids, tuple(completion.ids)) for ids, completion in pairs]
    differences = []
    for batch in micro_batches(examples, budget=8192):
        sampled = torch.tensor([x for member in batch.members for x in pairs[member][1].logprobs])
        differences.append((frozen_logprobs(decoder, batch, temperature) - sampled).abs())
    all_differences = torch.cat(differences)
    return {
        "model": name,
        "temperature": temperature,
        "tokens": all_differences.numel(),
        "max": float(all_differences.max()),
        "mean": float(all_differences.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.6])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="samples a prompt (default: 8)")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens a sequence (default: 128)")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()
    for name in options.model:
        prepared(name)
    rows = [gap(options, name, temperature) for name in options.model for temperature in options.temperature]
    print("sampling against training, on policy, nats")
    print(
        table(
            ["model", "temperature", "tokens", "largest gap", "mean gap"],
            [
                [r["model"], str(r["temperature"]), str(r["tokens"]), f"{r['max']:.1e}", f"{r['mean']:.1e}"]
                for r in rows
            ],
        )
    )
    save("logprob_gap", options.json, options, {"gaps": rows})


if __name__ == "__main__":
    main()
