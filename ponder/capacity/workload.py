"""What the stages of a recipe amount to, as jobs for samplers and trainers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ponder.capacity.assumptions import Assumptions
from ponder.capacity.jobs import Judge, JudgePlace, Lengths, RolloutJob, TrainingJob
from ponder.capacity.shapes import DecoderShape, dense_shape, public_shape, reward_shape, shape_of_config
from ponder.errors import UsageError
from ponder.evaluation.benchmarks import get_benchmark
from ponder.lineage import references
from ponder.model.config import DecoderConfig
from ponder.model.embedded import FOLDERS
from ponder.recipe import (
    EvaluateStage,
    EvaluationSettings,
    FineTuneStage,
    ModelShape,
    OnPolicySettings,
    OptimizerSettings,
    Recipe,
    ReinforceStage,
    RewardSettings,
    SampleStage,
    SamplingSettings,
    TrainRewardStage,
)
from ponder.store.files import read_json

_SFT_TAIL = 4.0  # the longest example over the mean, where no context limits it


@dataclass(frozen=True)
class Workload:
    """One stage: what a step draws and trains on, how many steps there are, and what is drawn besides."""

    model: DecoderShape
    rollouts: RolloutJob | None
    training: TrainingJob | None
    steps: float | None
    """None where they follow from data of unknown size."""
    evaluations: RolloutJob | None = None
    """Completions of one held-out evaluation."""
    evaluation_count: int = 0
    unknown: str = ""
    """What to set so that `steps` is known."""


def workload(recipe: Recipe, name: str, assumptions: Assumptions, another_engine: bool = False) -> Workload | None:
    """The work of a stage; None for one that runs no model (data that are only read or generated).

    With `another_engine`, and in half precision, the trainer scores what it learns from once itself, for the importance
    correction.
    Raises `UsageError` for a model whose shape is not known.
    """
    stage = recipe.stages[name]
    match stage:
        case ReinforceStage():
            return _reinforce(recipe, name, stage, assumptions, another_engine)
        case SampleStage():
            return _sample(recipe, name, stage, assumptions)
        case FineTuneStage():
            return _fine_tune(recipe, name, stage, assumptions)
        case TrainRewardStage():
            return _train_reward(recipe, name, stage, assumptions)
        case EvaluateStage():
            return _evaluate(recipe, name, stage, assumptions)


def evaluation_steps(settings: EvaluationSettings, steps: int) -> list[int]:
    """Steps after which a reinforce stage evaluates: 0, every `every`, and the last; none when `every` is 0."""
    return sorted({0, steps, *range(0, steps, settings.every)}) if settings.every else []


def exams(stage: EvaluateStage) -> Iterator[tuple[int, int, int]]:
    """(problems, samples, longest completion in tokens) of each task and benchmark of an evaluation."""
    for _ in stage.tasks:
        yield stage.task_problems, stage.task_samples, stage.task_sampling.max_tokens
    for benchmark in map(get_benchmark, stage.benchmarks):
        problems = min(stage.problems or benchmark.size, benchmark.size)
        yield problems, stage.samples or benchmark.k, stage.sampling.up_to(benchmark.max_tokens).max_tokens


# --- stages ------------------------------------------------------------------------------------------------------


def _reinforce(recipe: Recipe, name: str, stage: ReinforceStage, a: Assumptions, another_engine: bool) -> Workload:
    shape = shape_of(recipe, name)
    rollouts = _rollouts(recipe, stage.prompts_per_step, stage.group_size, stage.sampling, a)
    mode = stage.algorithm.importance.mode
    training = _training(
        recipe,
        rollouts,
        stage,
        references=(shape,) if stage.algorithm.kl.beta > 0 else (),
        judges=tuple(_judge(recipe, name, stage, model) for model in stage.reward_models),
        updates=stage.updates_per_step,
        own_scores=int(another_engine or recipe.precision != "fp32" if mode == "auto" else mode != "none"),
    )
    evaluation = stage.evaluation
    held_out = _rollouts(recipe, evaluation.problems, evaluation.samples, evaluation.sampling or stage.sampling, a)
    count = len(evaluation_steps(evaluation, stage.steps))
    return Workload(shape, rollouts, training, stage.steps, held_out if count else None, count)


def _judge(recipe: Recipe, name: str, stage: ReinforceStage, model: str) -> Judge:
    """A reward model with the work of all rewards that ask it."""
    rewards = {key: reward for key, reward in stage.rewards.items() if reward.model == model}
    shape = model_shape(recipe, model, f"stages.{name}.rewards.{next(iter(rewards))}.model")
    return Judge(reward_shape(shape), sum(_judged_share(stage, reward) for reward in rewards.values()))


def judge_place(recipe: Recipe) -> JudgePlace:
    """Where reward models score; a recipe that asks for no GPUs is planned as if it did."""
    cluster = recipe.cluster
    if cluster.kind == "ray" and cluster.reward_models.place == "separate":
        return "own" if cluster.reward_models.gpus or not asks_for_gpus(recipe) else "cpu"
    return "cpu" if recipe.device == "cpu" and asks_for_gpus(recipe) else "beside"


def asks_for_gpus(recipe: Recipe) -> bool:
    """Whether a recipe says how many GPUs sample and train, on Ray."""
    return recipe.cluster.kind == "ray" and recipe.cluster.rollout.gpus > 0


def _judged_share(stage: ReinforceStage, reward: RewardSettings) -> float:
    """Share of a stage's completions that a reward model scores: those of its tasks, in its steps."""
    everything = sum(task.weight for task in stage.tasks.values())
    of_tasks = sum(stage.tasks[task].weight for task in reward.tasks or stage.tasks) / everything
    return of_tasks * max(0, stage.steps - reward.from_step + 1) / stage.steps


def _training(
    recipe: Recipe,
    rollouts: RolloutJob,
    stage: ReinforceStage | FineTuneStage,
    *,
    references: tuple[DecoderShape, ...],
    judges: tuple[Judge, ...] = (),
    updates: int = 1,
    own_scores: int = 0,
) -> TrainingJob:
    """Training on what was drawn."""
    return TrainingJob(
        sequences=rollouts.completions,
        lengths=rollouts.lengths,
        updates=updates,
        tokens_per_micro_batch=stage.tokens_per_micro_batch,
        arithmetic_bytes=arithmetic_bytes(recipe),
        checkpointing=recipe.activation_checkpointing,
        moments=_moments(stage.optimizer),
        lora=stage.lora,
        sharding=recipe.cluster.trainer.sharding,
        references=references,
        judges=judges,
        judge_place=judge_place(recipe),
        own_scores=own_scores,
    )


def _sample(recipe: Recipe, name: str, stage: SampleStage, a: Assumptions) -> Workload | None:
    if stage.model is None:
        return None
    rollouts = _rollouts(recipe, stage.problems, stage.samples, stage.sampling, a)
    return Workload(shape_of(recipe, name), rollouts, None, 1)


def _evaluate(recipe: Recipe, name: str, stage: EvaluateStage, a: Assumptions) -> Workload | None:
    """All exams of all models, as if they were one batch of the largest model."""
    models = [model_shape(recipe, m, f"stages.{name}.models") for m in stage.models if m not in stage.endpoints]
    if not models:
        return None
    asked = list(exams(stage))
    completions = sum(problems * samples for problems, samples, _ in asked)
    mean = sum(p * k * a.completion_tokens(longest) for p, k, longest in asked) / completions
    longest = max(longest for _, _, longest in asked)
    lengths = Lengths(a.prompt_tokens, mean, a.longest_tokens(mean, completions, longest))
    problems = sum(problems for problems, _, _ in asked)
    job = RolloutJob(problems, round(completions / problems), lengths, arithmetic_bytes(recipe))
    return Workload(max(models, key=lambda shape: shape.parameters), job, None, len(models))


def _fine_tune(recipe: Recipe, name: str, stage: FineTuneStage, a: Assumptions) -> Workload:
    shape = shape_of(recipe, name)
    if stage.on_policy is not None:
        return _distillation(recipe, name, stage, stage.on_policy, shape, a)
    mean = min(a.example_tokens, float(stage.context))
    lengths = Lengths(0.0, mean, min(float(stage.context), _SFT_TAIL * mean))
    training = TrainingJob(
        sequences=stage.tokens_per_step / mean,
        lengths=lengths,
        tokens_per_micro_batch=stage.tokens_per_micro_batch,
        arithmetic_bytes=arithmetic_bytes(recipe),
        checkpointing=recipe.activation_checkpointing,
        moments=_moments(stage.optimizer),
        lora=stage.lora,
        sharding=recipe.cluster.trainer.sharding,
    )
    if stage.steps is not None:
        return Workload(shape, None, training, stage.steps)
    examples = [_examples(recipe, source, a) for source in stage.data]
    if None in examples:
        return Workload(shape, None, training, None, unknown="--assume rows=N, the examples in a set of unknown size")
    tokens = (stage.epochs or 1.0) * mean * sum(count or 0.0 for count in examples)
    return Workload(shape, None, training, max(1.0, tokens / stage.tokens_per_step))


def _distillation(
    recipe: Recipe, name: str, stage: FineTuneStage, on_policy: OnPolicySettings, shape: DecoderShape, a: Assumptions
) -> Workload:
    rollouts = _rollouts(recipe, on_policy.prompts_per_step, on_policy.samples, on_policy.sampling, a)
    teacher = model_shape(recipe, on_policy.teacher, f"stages.{name}.on_policy.teacher")
    training = _training(recipe, rollouts, stage, references=(teacher,))
    return Workload(shape, rollouts, training, stage.steps)


def _examples(recipe: Recipe, source: str, a: Assumptions) -> float | None:
    """Examples that a stage's data set or a file will hold; None where nothing says how many."""
    stage = recipe.stages.get(source)
    if not isinstance(stage, SampleStage):
        return a.rows or None
    sampled = a.kept_share * stage.problems * stage.samples if stage.tasks else 0.0
    if stage.keep.per_problem:
        sampled = min(sampled, float(stage.problems * stage.keep.per_problem))
    counts = [float(s.rows) or a.rows for s in stage.sources.values()]
    return sampled + sum(counts) if all(counts) else None


def _train_reward(recipe: Recipe, name: str, stage: TrainRewardStage, a: Assumptions) -> Workload:
    replies = 2 if stage.kind == "pairwise" else 1
    mean = min(float(stage.max_tokens), a.prompt_tokens + a.mean_share * stage.max_tokens)
    training = TrainingJob(
        sequences=replies * stage.rows_per_step,
        lengths=Lengths(0.0, mean, float(stage.max_tokens)),
        tokens_per_micro_batch=stage.tokens_per_micro_batch,
        arithmetic_bytes=arithmetic_bytes(recipe),
        checkpointing=recipe.activation_checkpointing,
        moments=_moments(stage.optimizer),
        sharding=recipe.cluster.trainer.sharding,
    )
    rows = stage.rows or a.rows
    shape = reward_shape(shape_of(recipe, name))
    unknown = "" if rows else f"stages.{name}.rows, or --assume rows=N"
    steps = stage.epochs * (1 - stage.heldout_share) * rows / stage.rows_per_step
    return Workload(shape, None, training, max(1.0, steps) if rows else None, unknown=unknown)


def _rollouts(recipe: Recipe, prompts: int, samples: int, sampling: SamplingSettings, a: Assumptions) -> RolloutJob:
    mean = a.completion_tokens(sampling.max_tokens)
    longest = a.longest_tokens(mean, prompts * samples, sampling.max_tokens)
    return RolloutJob(prompts, samples, Lengths(a.prompt_tokens, mean, longest), arithmetic_bytes(recipe))


def arithmetic_bytes(recipe: Recipe) -> int:
    """Bytes of a value in forward and backward passes."""
    return 4 if recipe.precision == "fp32" else 2


def _moments(optimizer: OptimizerSettings) -> int:
    return 1 if optimizer.name == "muon" else 2


# --- shapes ------------------------------------------------------------------------------------------------------


def shape_of(recipe: Recipe, name: str) -> DecoderShape:
    """The shape of the model that a stage trains or asks. Raises `UsageError` where it is not known."""
    stage = recipe.stages[name]
    if isinstance(stage, FineTuneStage) and stage.shape is not None:
        return new_shape(stage.shape, name)
    model = references(stage).get("model")
    if model is None:
        raise UsageError(f"stage {name!r} makes data, not a model: nothing can start from its weights")
    return model_shape(recipe, model, f"stages.{name}.model")


def model_shape(recipe: Recipe, model: str, setting: str) -> DecoderShape:
    """The shape of a stage's result, an embedded model, a folder with a `config.json`, or a known model of the Hub."""
    if model in recipe.stages:
        return shape_of(recipe, model)
    config = FOLDERS.get(model, Path(model)) / "config.json"
    if config.is_file():
        return shape_of_config(read_json(config), model)
    known = public_shape(_HUB_IDS.get(model, model))
    if known is None:
        raise UsageError(
            f"the size of {model!r} ({setting}) is not known here: name a folder with its config.json, or put a model "
            "of the same size from ponder/capacity/shapes.py in its place with --set"
        )
    return known


_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M"}
"""Models that recipes name by a folder which is made when it is needed."""


def new_shape(shape: ModelShape, name: str) -> DecoderShape:
    """The shape of a model that a stage makes; a tokenizer from elsewhere may change its vocabulary a little."""
    return dense_shape(config_of(shape), name)


def config_of(shape: ModelShape) -> DecoderConfig:
    """The decoder's configuration behind a recipe's `shape`, as far as parameters depend on it."""
    return DecoderConfig(
        family=shape.family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_positions=shape.max_positions,
        tied_embeddings=shape.tied_embeddings,
        qk_norm=shape.family == "qwen3",
    )
