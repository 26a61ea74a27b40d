"""What a recipe amounts to before anything runs: rollouts, updates, tokens, memory, time, and who starts from whom."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import assert_never

from rich.markup import escape
from rich.tree import Tree

from ponder.capacity.shapes import dense_parameters
from ponder.capacity.workload import arithmetic_bytes, config_of, evaluation_steps, exams
from ponder.errors import BrokenInputError
from ponder.lineage import references, running_order
from ponder.model.embedded import FOLDERS
from ponder.pipeline import is_done, stage_hashes
from ponder.recipe import (
    EvaluateStage,
    FineTuneStage,
    ModelShape,
    Recipe,
    ReinforceStage,
    SampleStage,
    Stage,
    TrainRewardStage,
)
from ponder.run import RunFolder
from ponder.store.files import disk_errors, read_json
from ponder.store.metrics import Line, read_metrics, series

_FP32_BYTES = 4
_TRAINED_COPIES = 4  # weights, gradients and Adam's two moments


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do. None stands for what cannot be known before it runs."""

    name: str
    verb: str
    state: str
    """`done`, `goes on` (begun with these settings) or `to run`."""
    starts_from: tuple[str, ...]
    formula: str
    """How the rollouts or tokens come about, in words: `120 steps x 32 prompts x 8 samples`."""
    rollouts: int
    """Completions sampled to train on, or to keep as data."""
    heldout_rollouts: int
    """Completions sampled to evaluate on."""
    updates: int | None
    """Optimizer steps; None where they follow from data that other stages make."""
    max_tokens: int | None
    """Upper bound of the tokens sampled, or trained on where nothing is sampled; None as for `updates`."""
    parameters: int | None
    memory_bytes: int | None
    """Weights, gradients and optimizer state in fp32, with reference and teacher; reward models in the recipe's
    precision; no activations."""
    seconds: float | None
    """From the speeds and lengths that the run folder holds for this stage; None where nothing was measured yet."""


def plan_recipe(recipe: Recipe, run_dir: Path) -> list[StagePlan]:
    """The plan of each stage, in the order in which they run.

    `run_dir` is asked for what is done and how fast it went; it may not exist. Raises `UsageError` when stages start
    from each other in a circle.
    """
    run = RunFolder(run_dir)
    begun = run.manifest().stages if run.manifest_path.exists() else {}
    hashes = stage_hashes(recipe)
    plans = []
    for name in running_order(recipe):
        stage = recipe.stages[name]
        same = name in begun and begun[name].hash == hashes[name]
        state = "done" if same and is_done(run, name, hashes[name]) else "goes on" if same else "to run"
        training, held_out = _rollouts(stage)
        plans.append(
            StagePlan(
                name=name,
                verb=stage.verb,
                state=state,
                starts_from=tuple(dict.fromkeys(references(stage).values())),
                formula=_formula(stage),
                rollouts=training,
                heldout_rollouts=held_out,
                updates=_updates(stage),
                max_tokens=_max_tokens(stage),
                parameters=count_parameters(recipe, name),
                memory_bytes=_memory(recipe, name),
                seconds=0.0 if state == "done" else _seconds(stage, read_metrics(run.metrics_path, name)),
            )
        )
    return plans


def lineage(recipe: Recipe) -> Tree:
    """The stages as a tree: each hangs below the model that it starts from; what else flows in stands in parentheses.

    Raises `UsageError` when stages start from each other in a circle.
    """
    tree = Tree(recipe.name)
    nodes: dict[str, Tree] = {}
    for name in running_order(recipe):
        stage = recipe.stages[name]
        parent = _parent(stage)
        if parent is not None and parent not in nodes:
            nodes[parent] = tree.add(escape(parent))
        branch = tree if parent is None else nodes[parent]
        nodes[name] = branch.add(escape(f"{name} ({'; '.join([_DOES[stage.verb], *_flows_in(stage)])})"))
    return tree


def count_parameters(recipe: Recipe, name: str) -> int | None:
    """Parameters of the model that a stage trains or asks (the largest of several); None where they are unknown."""
    stage = recipe.stages[name]
    if isinstance(stage, FineTuneStage) and stage.shape is not None:
        return _parameters_of_new(recipe, stage.shape)
    models = [reference for setting, reference in references(stage).items() if setting.startswith("model")]
    known = [_parameters_of(recipe, model) for model in models]
    return max((count for count in known if count is not None), default=None)


# --- lineage -----------------------------------------------------------------------------------------------------

_DOES = {
    "reinforce": "reinforced",
    "sample": "sampled",
    "fine_tune": "fine-tuned",
    "train_reward": "reward model",
    "evaluate": "evaluated",
}
_NEW = "random weights"


def _parent(stage: Stage) -> str | None:
    """The model below which a stage is drawn; None for what has none, or many."""
    match stage:
        case ReinforceStage() | SampleStage() | TrainRewardStage():
            return stage.model
        case FineTuneStage():
            return stage.model or _NEW
        case EvaluateStage():
            return None
        case _:
            assert_never(stage)


def _flows_in(stage: Stage) -> list[str]:
    """What a stage takes besides its model: data, reward models, teachers."""
    match stage:
        case ReinforceStage():
            return _listed("rewards", (reward.model for reward in stage.rewards.values() if reward.model))
        case SampleStage():
            return _listed("sources", stage.sources)
        case FineTuneStage():
            teacher = [stage.on_policy.teacher] if stage.on_policy else []
            tokenizer = [stage.shape.tokenizer] if stage.shape and stage.shape.tokenizer else []
            return _listed("data", stage.data) + _listed("teacher", teacher) + _listed("tokenizer", tokenizer)
        case TrainRewardStage():
            return _listed("data", stage.data)
        case EvaluateStage():
            return _listed("models", stage.models)
        case _:
            assert_never(stage)


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    listed = ", ".join(dict.fromkeys(names))
    return [f"{kind}: {listed}"] if listed else []


# --- counts ------------------------------------------------------------------------------------------------------


def _rollouts(stage: Stage) -> tuple[int, int]:
    """Completions sampled (to train on or keep, on held-out problems)."""
    match stage:
        case ReinforceStage():
            held_out = stage.evaluation.problems * stage.evaluation.samples
            evaluations = len(evaluation_steps(stage.evaluation, stage.steps))
            return stage.steps * stage.prompts_per_step * stage.group_size, evaluations * held_out
        case SampleStage():
            return (stage.problems * stage.samples if stage.tasks else 0), 0
        case FineTuneStage():
            if stage.on_policy is None or stage.steps is None:
                return 0, 0
            return stage.steps * stage.on_policy.prompts_per_step * stage.on_policy.samples, 0
        case TrainRewardStage():
            return 0, 0
        case EvaluateStage():
            return 0, len(stage.models) * sum(problems * samples for problems, samples, _ in exams(stage))
        case _:
            assert_never(stage)


def _formula(stage: Stage) -> str:
    match stage:
        case ReinforceStage():
            return f"{stage.steps:,} steps x {stage.prompts_per_step} prompts x {stage.group_size} samples"
        case SampleStage():
            asked = [f"{stage.problems:,} problems x {stage.samples} samples"] if stage.tasks else []
            rows = [f"{source.rows:,} rows of {name}" for name, source in stage.sources.items() if source.rows]
            whole = [f"all of {name}" for name, source in stage.sources.items() if not source.rows]
            return " + ".join(asked + rows + whole)
        case FineTuneStage():
            return _fine_tune_formula(stage)
        case TrainRewardStage():
            taken = f"{stage.rows:,} rows" if stage.rows else "the rows"
            return f"{_epochs(stage.epochs)} x {1 - stage.heldout_share:.0%} of {taken} of {', '.join(stage.data)}"
        case EvaluateStage():
            return f"{len(stage.models)} models x {' + '.join(_exam_formulas(stage))}"
        case _:
            assert_never(stage)


def _exam_formulas(stage: EvaluateStage) -> Iterator[str]:
    if stage.tasks:
        yield f"{len(stage.tasks)} tasks x {stage.task_problems} problems x {stage.task_samples} samples"
    for name, (problems, samples, _) in zip(stage.benchmarks, list(exams(stage))[len(stage.tasks) :], strict=True):
        yield f"{problems} problems of {name} x {samples} samples"


def _fine_tune_formula(stage: FineTuneStage) -> str:
    if stage.epochs is not None:
        return f"{_epochs(stage.epochs)} x data of {', '.join(stage.data)}"
    if stage.on_policy is not None:
        return f"{stage.steps:,} steps x {stage.on_policy.prompts_per_step} prompts x {stage.on_policy.samples} samples"
    return f"{stage.steps:,} steps x {stage.tokens_per_step:,} tokens"


def _epochs(count: float) -> str:
    return f"{count:g} epoch" if count == 1 else f"{count:g} epochs"


def _updates(stage: Stage) -> int | None:
    match stage:
        case ReinforceStage():
            return stage.steps * stage.updates_per_step
        case FineTuneStage():
            return stage.steps
        case TrainRewardStage():
            return None
        case SampleStage() | EvaluateStage():
            return 0
        case _:
            assert_never(stage)


def _max_tokens(stage: Stage) -> int | None:
    training, held_out = _rollouts(stage)
    match stage:
        case ReinforceStage():
            sampling = stage.evaluation.sampling or stage.sampling
            return training * stage.sampling.max_tokens + held_out * sampling.max_tokens
        case SampleStage():
            return training * stage.sampling.max_tokens
        case FineTuneStage():
            if stage.on_policy is not None:
                return training * stage.on_policy.sampling.max_tokens
            return None if stage.steps is None else stage.steps * stage.tokens_per_step
        case TrainRewardStage():
            return None
        case EvaluateStage():
            tokens = sum(problems * samples * longest for problems, samples, longest in exams(stage))
            return len(stage.models) * tokens
        case _:
            assert_never(stage)


def _seconds(stage: Stage, measured: list[Line]) -> float | None:
    """Time of the whole stage at the measured speeds (tokens a second) and length (tokens a completion)."""
    sampling, training = _mean(measured, "speed/rollout_tokens_per_s"), _mean(measured, "speed/train_tokens_per_s")
    sampled, held_out = _rollouts(stage)
    if not sampled and not held_out:
        tokens = _max_tokens(stage)
        return tokens / training if tokens and training else None
    length = _mean(measured, "length/mean")
    trained = sampled if _updates(stage) else 0
    if not sampling or length is None or (trained and not training):
        return None
    return (sampled + held_out) * length / sampling + (trained * length / training if training else 0.0)


# --- parameters and memory ---------------------------------------------------------------------------------------


def _memory(recipe: Recipe, name: str) -> int | None:
    """Bytes of all weights that a stage holds at once, of their gradients and moments; None where one is unknown."""
    stage = recipe.stages[name]
    own = count_parameters(recipe, name)
    besides = [_parameters_of(recipe, model) for model in _held_beside(stage)]
    if own is None or None in besides:
        return None
    value_bytes = arithmetic_bytes(recipe) if isinstance(stage, ReinforceStage) else _FP32_BYTES
    return _FP32_BYTES * own * _copies(stage) + value_bytes * sum(count or 0 for count in besides)


def _held_beside(stage: Stage) -> set[str]:
    """Models that lie in memory beside the stage's own: reward models and teachers."""
    match stage:
        case ReinforceStage():
            return set(stage.reward_models)
        case FineTuneStage() if stage.on_policy is not None:
            return {stage.on_policy.teacher}
        case _:
            return set()


def _copies(stage: Stage) -> int:
    """How many times the parameters lie in memory."""
    match stage:
        case ReinforceStage():
            return _TRAINED_COPIES + (stage.algorithm.kl.beta > 0)
        case FineTuneStage() | TrainRewardStage():
            return _TRAINED_COPIES
        case SampleStage() | EvaluateStage():
            return 1
        case _:
            assert_never(stage)


def _parameters_of(recipe: Recipe, model: str) -> int | None:
    return count_parameters(recipe, model) if model in recipe.stages else _stored_parameters(model)


def parameters_of_shape(shape: ModelShape) -> int:
    """Parameters of a decoder of that shape."""
    return dense_parameters(config_of(shape))


def _parameters_of_new(recipe: Recipe, shape: ModelShape) -> int | None:
    if shape.tokenizer is None:
        return parameters_of_shape(shape)
    size = _vocabulary(recipe, shape.tokenizer)
    return None if size is None else parameters_of_shape(shape.model_copy(update={"vocab_size": size}))


def _vocabulary(recipe: Recipe, model: str) -> int | None:
    """Tokens of a model's vocabulary; None where they are unknown."""
    if model not in recipe.stages:
        config = FOLDERS.get(model, Path(model)) / "config.json"
        return read_json(config).get("vocab_size") if config.is_file() else None
    stage = recipe.stages[model]
    if isinstance(stage, FineTuneStage) and stage.shape is not None and stage.shape.tokenizer is None:
        return stage.shape.vocab_size
    found = references(stage)
    source = found.get("shape.tokenizer", found.get("model"))
    return None if source is None else _vocabulary(recipe, source)


def _mean(lines: Iterable[Line], name: str) -> float | None:
    values = [value for _, value in series(lines, name)]
    return fmean(values) if values else None


def _stored_parameters(model: str) -> int | None:
    """Parameters in the safetensors files of a folder or an embedded model, from their headers alone."""
    folder = FOLDERS.get(model, Path(model))
    files = list(folder.rglob("*.safetensors")) if folder.is_dir() else []
    return sum(map(_safetensors_parameters, files)) if files else None


def _safetensors_parameters(path: Path) -> int:
    with disk_errors(path, "read"), open(path, "rb") as file:
        try:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        except (struct.error, ValueError, OverflowError) as error:
            raise BrokenInputError(f"{path} is not a safetensors file") from error
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
