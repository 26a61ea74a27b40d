"""Weight update: seconds and bytes to bring new weights to rollouts, in this process and over to vLLM's.

    python benchmarks/weight_update.py --model mini
    python benchmarks/weight_update.py --model smollm2-135m

A session holds rollouts that are under way; each turn hands it every weight, changed, in float32, and ends when the
next token will be sampled under them. `native` copies them in this process. `vllm` renames them for Hugging Face,
writes them as safetensors into memory, and lets vLLM's process read and pack them: nothing is aborted. vLLM runs
wherever its environment computes, on a CPU or a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Turns, add_common_arguments, as_json, play, save, table
from models import MODELS, VLLM_PYTHON, BenchmarkModel, own_python, prepared

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.rollout.base import Session

TOKENS = 512
"""Longest completion of the rollouts that are under way."""


def native_side(options: argparse.Namespace, turns: Turns) -> None:
    import torch

    from ponder.rollout.native import NativeSession

    torch.set_num_threads(options.threads)
    model = BenchmarkModel(options.model)
    decoder = model.decoder()
    weights = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    _update(NativeSession(decoder), model, weights, turns, {"device": "cpu"})


def vllm_side(options: argparse.Namespace, turns: Turns) -> None:
    from ponder.recipe import VllmSettings
    from ponder.rollout.vllm import VllmSession

    model = BenchmarkModel(options.model)
    settings = VllmSettings(python=options.vllm_python)
    session = VllmSession(model.folder, settings, max_positions=2 * TOKENS, threads=options.threads)
    try:
        _update(session, model, model.decoder().state_dict(), turns, session.facts)
    finally:
        session.close()


def _update(
    session: Session, model: BenchmarkModel, weights: Mapping[str, Tensor], turns: Turns, facts: Mapping[str, str]
) -> None:
    from ponder.rollout.base import Request, Sampling

    requests = [Request(ids, str(number), 4) for number, ids in enumerate(model.prompt_ids(2))]
    turns.ready(bytes=sum(weight.nbytes for weight in weights.values()), tensors=len(weights), **facts)
    for version in range(1, turns.count + 1):
        if session.idle:
            session.add(requests, Sampling(TOKENS), seed=version)
            session.step()
        for weight in weights.values():
            weight.mul_(1.0001)
        turns.wait()
        session.load_weights(version, weights)
        turns.report()
        session.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--vllm-python", default=VLLM_PYTHON, help="Python that has vllm (`make vllm`)")
    add_common_arguments(parser, repeats=10)
    options = parser.parse_args()
    if not options.side:
        prepared(options.model)
    sides = {"native": (native_side, own_python()), "vllm": (vllm_side, own_python())}
    results = play(options, Path(__file__), sides)
    if results is None:
        return
    rows = [
        [
            name,
            result.facts["device"],
            f"{result.median('seconds'):.3f}",
            f"{min(turn['seconds'] for turn in result.turns):.3f}",
            f"{max(turn['seconds'] for turn in result.turns):.3f}",
            f"{result.facts['bytes']:,}",
            f"{result.facts['bytes'] / result.median('seconds') / 1e9:.2f}",
        ]
        for name, result in results.items()
    ]
    print(f"{options.model}: {options.repeats} updates, {options.threads} threads")
    print(table(["session", "device", "seconds", "least", "most", "bytes", "GB/s"], rows))
    save(f"weight_update-{options.model}", options.json, options, {"results": as_json(results)})


if __name__ == "__main__":
    main()
