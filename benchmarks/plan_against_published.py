"""`ponder plan --cluster` beside figures that others have published: each error, with one set of factors for all.

    python benchmarks/plan_against_published.py

Nothing is run but arithmetic. The settings of each run, where they stand, and what had to be assumed are in
docs/capacity.md; the factors are the defaults of ponder/capacity/assumptions.py, fitted to none of these runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from measure import table

from ponder.capacity.assumptions import Assumptions, parse_assumptions
from ponder.capacity.estimate import Schedule, StepEstimate, best_step, step_on
from ponder.capacity.hardware import DEVICES
from ponder.capacity.jobs import Layout, Lengths, RolloutJob, TrainingJob
from ponder.capacity.shapes import DecoderShape, public_shape
from ponder.capacity.workload import Workload

_NEMO_PROMPT = 110.0  # published tokens a second and GPU x time x GPUs / samples, less the published mean length
_TOKENS_OF_ZERO = (507.0, 14_200.0)  # mean completion of R1-Zero at step 0 and at step 10,400, read off its figure


@dataclass(frozen=True)
class Comparison:
    """One published figure."""

    run: str
    quantity: str
    predicted: float
    published: float

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted / self.published - 1


def shape_of(name: str) -> DecoderShape:
    found = public_shape(name)
    assert found is not None, name
    return found


def r1_zero(a: Assumptions) -> Iterator[Comparison]:
    """101K GPU hours on 64 x 8 H800, with the lengths of its figure, and with shorter and longer ones."""
    for run, scale in (("", 1.0), (", lengths x 0.7", 0.7), (", lengths x 1.3", 1.3)):
        yield Comparison(f"DeepSeek-R1-Zero, 512 H800{run}", "GPU hours", 512 * r1_zero_hours(a, scale), 101_000)


def r1_zero_hours(a: Assumptions, scale: float = 1.0) -> float:
    """8.2K updates of at most 32,768 tokens, then 2.2K of 65,536; 16 a rollout."""
    return sum(
        rollouts * r1_zero_step(a, scale * mean, longest).step_s / 3600
        for rollouts, mean, longest in (
            (8_200 / 16, mean_of_zero(0, 8_200), 32_768),
            (2_200 / 16, mean_of_zero(8_200, 10_400), 65_536),
        )
    )


def mean_of_zero(first: int, last: int) -> float:
    """Mean completion between two of its steps, by a straight line from the first to the last."""
    low, high = _TOKENS_OF_ZERO
    return low + (high - low) * (first + last) / 2 / 10_400


def r1_zero_step(a: Assumptions, mean: float, max_tokens: int) -> StepEstimate:
    """8,192 completions, 16 updates; a reference; devices take turns. Samplers of as many devices as is fastest."""
    shape = shape_of("deepseek-ai/DeepSeek-V3")
    lengths = Lengths(a.prompt_tokens, mean, a.longest_tokens(mean, 8_192, max_tokens))
    training = TrainingJob(
        8_192, lengths, updates=16, tokens_per_micro_batch=max_tokens, sharding="model_parallel", references=(shape,)
    )
    layouts = [Layout(DEVICES["H800"], 512, 512, tp, True, True, weight_links=8) for tp in (8, 16, 32, 64)]
    return best_step(Workload(shape, RolloutJob(512, 16, lengths), training, 1), layouts, a)


NEMO = [
    # model, schedule, GPUs, mean, max tokens, prompts, samples, samplers' devices, checkpointing, seconds
    ("meta-llama/Llama-3.1-8B", "on policy", 16, 1_060, 4_096, 64, 32, 1, True, 97.7),
    ("meta-llama/Llama-3.1-8B", "1 step off", 16, 1_129, 4_096, 64, 32, 1, True, 74.6),
    ("Qwen/Qwen3-32B", "on policy", 32, 3_206, 4_096, 64, 32, 4, False, 393.0),
    ("Qwen/Qwen3-32B", "1 step off", 64, 3_207, 4_096, 64, 32, 4, False, 215.0),
    ("Qwen/Qwen3-30B-A3B", "on policy", 32, 3_154, 4_096, 64, 32, 4, False, 225.0),
    ("Qwen/Qwen3-30B-A3B", "1 step off", 32, 3_158, 4_096, 64, 32, 2, False, 244.0),
    ("Qwen/Qwen3-235B-A22B", "on policy", 128, 5_671, 8_192, 16, 32, 16, True, 506.0),
    ("Qwen/Qwen3-235B-A22B", "1 step off", 256, 5_691, 8_192, 16, 32, 8, True, 241.0),
    ("deepseek-ai/DeepSeek-V3", "on policy", 256, 745, 1_536, 32, 16, 32, True, 154.0),
    ("deepseek-ai/DeepSeek-V3", "1 step off", 512, 744, 1_536, 32, 16, 32, True, 77.9),
]
"""The table of NeMo RL v0.4 for the DGX H100 in bf16, Megatron-core training, vLLM sampling."""


def nemo_rl(a: Assumptions) -> Iterator[Comparison]:
    """Seconds a step: log-probabilities of the policy and of a reference before every update."""
    for model, schedule, gpus, mean, limit, prompts, samples, tp, checkpointing, seconds in NEMO:
        shape = shape_of(model)
        longest = a.longest_tokens(mean, prompts * samples, limit - int(_NEMO_PROMPT))
        lengths = Lengths(_NEMO_PROMPT, mean, longest)
        training = TrainingJob(
            prompts * samples,
            lengths,
            updates=prompts * samples // 512,
            checkpointing=checkpointing,
            sharding="model_parallel",
            references=(shape,),
            own_scores=1,
        )
        apart = schedule == "1 step off"
        layout = Layout(
            DEVICES["H100"], gpus // 2 if apart else gpus, gpus // 2 if apart else gpus, tp, not apart, not apart, 8
        )
        kind: Schedule = "one_step_behind" if apart else "synchronous"
        work = Workload(shape, RolloutJob(prompts, samples, lengths), training, 1)
        step = step_on(work, layout, a, kind)
        yield Comparison(f"NeMo RL {model.split('/')[1]}, {schedule}, {gpus} H100", "s a step", step.step_s, seconds)


SKYRL = [
    # model, trainer, GPUs, mean tokens of a sequence, seconds of the update, of the forward passes
    ("Qwen/Qwen2.5-3B", "fsdp2", 8, 658, 42.0, 28.0),
    ("Qwen/Qwen2.5-3B", "Megatron", 8, 658, 48.0, 39.0),
    ("Qwen/Qwen2.5-7B", "fsdp2", 8, 834, 100.0, 33.0),
    ("Qwen/Qwen2.5-7B", "Megatron", 8, 819, 93.0, 46.0),
    ("Qwen/Qwen3-30B-A3B", "Megatron", 32, 1_158, 189.0, 145.0),
]
"""Search-R1 on SkyRL: 512 prompts x 5, two updates, micro-batches of a few sequences, policy and reference scored."""


def skyrl(a: Assumptions) -> Iterator[Comparison]:
    """Its update and its forward passes; a whole step, with sampling and search, is not published."""
    for model, trainer, gpus, mean, update_s, forward_s in SKYRL:
        shape = shape_of(model)
        training = TrainingJob(
            2_560,
            Lengths(0.0, mean, 4_096.0),
            updates=2,
            checkpointing=True,
            sharding="fsdp2" if trainer == "fsdp2" else "model_parallel",
            references=(shape,),
            own_scores=1,
        )
        update = step_on(Workload(shape, None, training, 1), Layout(DEVICES["H100"], 0, gpus), a).update
        assert update is not None
        run = f"SkyRL {model.split('/')[1]}, {trainer}, {gpus} H100"
        yield Comparison(run, "s, update", update.total_s - update.score_s, update_s)
        yield Comparison(run, "s, forward", update.score_s, forward_s)


def number(value: float) -> str:
    """Three figures."""
    return f"{float(f'{value:.3g}'):,g}"


def rows(a: Assumptions) -> list[tuple[str, str, str, str, str]]:
    """All comparisons as text: run, quantity, predicted, published, error."""
    found = [*r1_zero(a), *nemo_rl(a), *skyrl(a)]
    return [(c.run, c.quantity, number(c.predicted), f"{c.published:,g}", f"{c.error:+.0%}") for c in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print the rows of docs/capacity.md")
    parser.add_argument("--assume", metavar="NAME=VALUE", action="append", default=[], help="replace a factor")
    options = parser.parse_args()
    found = rows(parse_assumptions(options.assume))
    if options.markdown:
        for row in found:
            print(f"| {' | '.join(row)} |")
    else:
        print(table(["run", "quantity", "predicted", "published", "error"], found))


if __name__ == "__main__":
    main()
