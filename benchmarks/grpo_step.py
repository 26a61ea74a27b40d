"""One whole GRPO step (generate, reward, advantage, loss, backward, optimizer) of Ponder beside TRL's GRPOTrainer.

    python benchmarks/grpo_step.py --model mini                      # 16 prompts x 8 samples x 128 tokens
    python benchmarks/grpo_step.py --model smollm2-135m              # 4 x 8 x 64
    python benchmarks/grpo_step.py --model mini --lengths real

Both sides read the same folder and get the same prompts, number of threads and rewards; each runs in a process of its
own, whose peak memory is reported. TRL is set as a user would set it for this step on a CPU: float32, loss type "grpo",
no KL term, no gradient checkpointing, the whole batch in one pass unless --peer-micro-batch says otherwise.

--lengths fixed: every reply has all its tokens, and every group has right and wrong ones.
--lengths real: reply lengths, right answers and dead groups are those of one step of a real run (real_step.json, made
by record_step.py), scaled to the limit: most replies end early, a few reach it, some groups are all right or all wrong.
Both sides are held to the same table: Ponder by the engine's `length_limit`, TRL by a logits processor that allows the
end-of-text token at that place only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import Result, Turns, add_common_arguments, as_json, play, ratios, save, table
from models import MODELS, PEERS_PYTHON, BenchmarkModel, own_python, prepared

if TYPE_CHECKING:
    import torch

SHAPES = {"mini": (16, 8, 128), "smollm2-135m": (4, 8, 64)}
"""Prompts, samples a prompt and tokens a reply, by model."""
REAL_STEP = Path(__file__).with_name("real_step.json")
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Plan:
    """How long each reply is, in tokens, and what it earns: a row a prompt, a column a sample."""

    lengths: list[list[int]]
    rewards: list[list[float]]

    @classmethod
    def fixed(cls, prompts: int, group: int, tokens: int) -> Plan:
        """All replies at the limit, every other one right."""
        return cls([[tokens] * group] * prompts, [[float(s % 2) for s in range(group)]] * prompts)

    @classmethod
    def real(cls, prompts: int, group: int, tokens: int) -> Plan:
        """The first prompts and samples of the recorded step, its lengths as a share of the limit."""
        if not REAL_STEP.exists():
            raise SystemExit(f"--lengths real needs {REAL_STEP.name}: record a step with record_step.py")
        recorded = json.loads(REAL_STEP.read_text(encoding="utf-8"))
        lengths = [row[:group] for row in recorded["length_shares"][:prompts]]
        rewards = [row[:group] for row in recorded["rewards"][:prompts]]
        if len(lengths) < prompts or len(lengths[0]) < group:
            raise SystemExit(f"{REAL_STEP.name} holds no {prompts} x {group} replies: record a larger step")
        return cls([[max(1, round(share * tokens)) for share in row] for row in lengths], rewards)

    def facts(self, limit: int) -> dict[str, float]:
        """What the plan asks of both sides."""
        flat = [length for row in self.lengths for length in row]
        return {
            "reply_tokens": sum(flat),
            "mean_length": sum(flat) / len(flat),
            "truncated_share": sum(length == limit for length in flat) / len(flat),
            "dead_groups_share": sum(len(set(row)) == 1 for row in self.rewards) / len(self.rewards),
        }


def plan_of(options: argparse.Namespace) -> Plan:
    make = Plan.fixed if options.lengths == "fixed" else Plan.real
    return make(options.prompts, options.group, options.tokens)


def ponder_side(options: argparse.Namespace, turns: Turns) -> None:
    import torch

    from ponder.algorithms.advantages import combine_rewards
    from ponder.recipe import AlgorithmSettings, OptimizerSettings
    from ponder.rollout.base import Request, Sampling
    from ponder.rollout.native import NativeEngine
    from ponder.training.optimizer import Optimizer
    from ponder.training.packing import Example
    from ponder.training.update import Trajectory, policy_step

    torch.set_num_threads(options.threads)
    model, plan = BenchmarkModel(options.model), plan_of(options)
    decoder = model.decoder()
    prompts = model.prompt_ids(options.prompts)
    requests = [Request(ids, str(i), options.group) for i, ids in enumerate(prompts)]
    engine = NativeEngine(decoder, length_limit=lambda request, sample: plan.lengths[request][sample])
    optimizer = Optimizer(decoder, OptimizerSettings(lr=LEARNING_RATE), turns.count)
    algorithm, sampling = AlgorithmSettings(), Sampling(max_tokens=options.tokens)
    turns.ready()
    for turn in range(turns.count):
        turns.wait()
        started = time.perf_counter()
        groups = engine.generate(requests, sampling, seed=turn)
        generated = time.perf_counter()
        advantages, _ = combine_rewards({"table": torch.tensor(plan.rewards)}, {"table": 1.0})
        trajectories = [
            Trajectory(Example(ids, tuple(completion.ids)), completion.logprobs, advantage)
            for ids, group, row in zip(prompts, groups, advantages.tolist(), strict=True)
            for completion, advantage in zip(group, row, strict=True)
        ]
        update = policy_step(
            decoder,
            optimizer,
            trajectories,
            algorithm,
            temperature=1.0,
            max_tokens=options.tokens,
            budget=options.tokens_per_micro_batch,
        )
        turns.report(
            generate_seconds=generated - started,
            reply_tokens=sum(len(t.example.reply_ids) for t in trajectories),
            trained_tokens=update.trained_tokens,
        )


def trl_side(options: argparse.Namespace, turns: Turns) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    model, plan = BenchmarkModel(options.model), plan_of(options)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    texts = model.prompt_texts(options.prompts)
    assert [tuple(ids) for ids in tokenizer(texts)["input_ids"]] == model.prompt_ids(options.prompts)
    replies = options.prompts * options.group
    micro_batch = options.peer_micro_batch or replies
    seen: dict[str, float] = {}

    class TakeTurns(TrainerCallback):
        """From before the generation to after the optimizer's step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.report(**seen)

    def reward_table(completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert [len(ids) for ids in completion_ids] == [n for row in plan.lengths for n in row]
        seen["reply_tokens"] = seen["trained_tokens"] = sum(map(len, completion_ids))
        return [reward for row in plan.rewards for reward in row]

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=reward_table,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        callbacks=[TakeTurns()],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=turns.count,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=replies // micro_batch,
            num_generations=options.group,
            max_completion_length=options.tokens,
            loss_type="grpo",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    generate = trainer.model.generate

    def timed_generate(**arguments: Any) -> torch.Tensor:
        started = time.perf_counter()
        prompt_length = arguments["input_ids"].shape[1]
        force = _length_processor(plan, trainer.eos_token_ids, options.tokens, prompt_length)
        out: torch.Tensor = generate(**arguments, logits_processor=LogitsProcessorList([force]))
        seen["generate_seconds"] = time.perf_counter() - started
        return out

    trainer.model.generate = timed_generate
    turns.ready()
    trainer.train()


def _length_processor(
    plan: Plan, eos_ids: list[int], limit: int, prompt_length: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Allows the end of a text at a row's planned length, and nowhere else; a row at the limit never ends itself."""
    import torch

    lengths = torch.tensor([length for row in plan.lengths for length in row])

    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        next_length = ids.shape[1] - prompt_length + 1
        scores[:, eos_ids] = -torch.inf
        ending = (lengths == next_length) & (lengths < limit)
        scores[ending] = -torch.inf
        scores[ending, eos_ids[0]] = 0.0
        return scores

    return process


def show(options: argparse.Namespace, results: dict[str, Result]) -> None:
    """The table, and what is saved."""
    against = {name: ratios(results, name) for name in ("seconds", "peak_mib", "peak_rise_mib")}
    rows = []
    for name, result in results.items():
        numbers = ("seconds", "generate_seconds", "cpu_seconds")
        rows.append(
            [
                name,
                *(f"{result.median(key):.2f}" for key in numbers),
                *(f"{result.median(key):.0f}" for key in ("trained_tokens", "peak_mib", "peak_rise_mib")),
                *(f"{ratio[name]['of_medians']:.2f}" if name in ratio else "" for ratio in against.values()),
            ]
        )
    facts = plan_of(options).facts(options.tokens)
    print(
        f"{options.model}: {options.prompts} x {options.group} x {options.tokens}, lengths {options.lengths} "
        f"(mean {facts['mean_length']:.0f}, {facts['truncated_share']:.0%} at the limit, "
        f"{facts['dead_groups_share']:.0%} of the groups dead), {options.threads} threads, medians"
    )
    header = [
        "side",
        "s/step",
        "generate s",
        "CPU s",
        "trained tokens",
        "peak MiB",
        "rise MiB",
        "x time",
        "x peak",
        "x rise",
    ]
    print(table(header, rows))
    save(
        f"grpo_step-{options.model}-{options.lengths}",
        options.json,
        options,
        {"plan": facts, "results": as_json(results), "ratios": against},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--prompts", type=int, help="prompts a step (default: 16 for mini, 4 for smollm2-135m)")
    parser.add_argument("--group", type=int, help="samples a prompt (default: 8)")
    parser.add_argument("--tokens", type=int, help="longest reply (default: 128, 64)")
    parser.add_argument("--lengths", choices=("fixed", "real"), default="fixed")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=8192, help="Ponder's packing budget")
    parser.add_argument("--peer-micro-batch", type=int, help="replies a pass of TRL (default: all at once)")
    parser.add_argument("--peer-python", default=PEERS_PYTHON, help="Python that has TRL")
    add_common_arguments(parser, repeats=5)
    options = parser.parse_args()
    for name, default in zip(("prompts", "group", "tokens"), SHAPES[options.model], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    if not options.side:
        prepared(options.model)
    sides = {"ponder": (ponder_side, own_python()), "trl": (trl_side, options.peer_python)}
    results = play(options, Path(__file__), sides)
    if results is not None:
        show(options, results)


if __name__ == "__main__":
    main()
