"""One supervised update of all weights, of adapters, and of adapters beside 4-bit weights: time and memory.

    python benchmarks/adapters.py --model smollm2-135m

Each way has a process of its own and the same batch: --rows sequences of --tokens random tokens. `held MiB` counts the
tensors that stay between two updates (weights, packed weights, the optimizer's moments); `resident MiB` is the process
between two updates, libraries included; `peak MiB` is the most it held, the loading of the whole model included.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import Turns, add_common_arguments, as_json, play, resident_mib, save, table
from models import MODELS, BenchmarkModel, own_python, prepared

if TYPE_CHECKING:
    from ponder.model.decoder import Decoder
    from ponder.training.optimizer import Optimizer

MIB = 1 << 20
WAYS = {"all weights": None, "adapters": "none", "adapters, nf4": "nf4"}
"""How the frozen weights are kept, by way; None trains them."""


def train(options: argparse.Namespace, turns: Turns) -> None:
    import torch

    from ponder.model.lora import add_adapters
    from ponder.recipe import LoraSettings, OptimizerSettings
    from ponder.training.optimizer import Optimizer
    from ponder.training.packing import Example
    from ponder.training.update import supervised_step

    torch.set_num_threads(options.threads)
    decoder = BenchmarkModel(options.model).decoder()
    quantise = WAYS[options.side]
    if quantise is not None:
        add_adapters(decoder, LoraSettings.model_validate({"rank": options.rank, "quantise": quantise}), seed=0)
    optimizer = Optimizer(decoder, OptimizerSettings(lr=1e-6), total_steps=turns.count)
    ids = torch.randint(decoder.config.vocab_size, (options.rows, options.tokens), generator=torch.Generator()).tolist()
    examples = [Example((row[0],), tuple(row[1:])) for row in ids]
    turns.ready(trained_parameters=sum(p.numel() for p in optimizer.parameters))
    for _ in range(turns.count):
        turns.wait()
        supervised_step(decoder, optimizer, examples, budget=options.rows * options.tokens)
        turns.report(held_mib=held_mib(decoder, optimizer), resident_mib=resident_mib())


def held_mib(decoder: Decoder, optimizer: Optimizer) -> float:
    """Of the tensors that stay between two updates."""
    held = list(decoder.state_dict().values())
    for part in optimizer.state_dict()["parts"]:
        held += [value for state in part["state"].values() for value in state.values() if hasattr(value, "nbytes")]
    return sum(tensor.nbytes for tensor in held) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (16)")
    parser.add_argument("--rows", type=int, default=8, help="sequences a batch (8)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens a sequence (128)")
    add_common_arguments(parser, repeats=3)
    options = parser.parse_args()
    if not options.side:
        prepared(options.model)
    results = play(options, Path(__file__), {way: (train, own_python()) for way in WAYS})
    if results is None:
        return
    rows = [
        [
            way,
            f"{result.facts['trained_parameters']:,}",
            f"{result.median('seconds'):.2f}",
            *(f"{median(turn[f'{kind}_mib'] for turn in result.turns):.0f}" for kind in ("held", "resident", "peak")),
        ]
        for way, result in results.items()
    ]
    print(f"{options.model}: {options.rows} x {options.tokens} tokens, {options.threads} threads, medians")
    print(table(["what learns", "parameters", "s an update", "held MiB", "resident MiB", "peak MiB"], rows))
    save(f"adapters-{options.model}", options.json, options, {"results": as_json(results)})


if __name__ == "__main__":
    main()
