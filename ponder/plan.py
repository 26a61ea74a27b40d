"""What a recipe amounts to before anything runs: rollouts, updates, tokens, memory, time, and who starts from whom."""

from __future__ import annotations

import importlib.resources
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.tree import Tree

from ponder.errors import BrokenInputError
from ponder.pipeline import is_done, references, stage_hashes
from ponder.recipe import EvaluateStage, EvaluationSettings, FineTuneStage, ModelShape, Recipe, ReinforceStage, Stage
from ponder.run import RunFolder
from ponder.store.files import disk_errors
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
    """Completions sampled to train on."""
    heldout_rollouts: int
    """Completions sampled to evaluate on."""
    updates: int
    """Optimizer steps."""
    max_tokens: int
    """Upper bound of the tokens sampled (reinforce, evaluate) or trained on (fine_tune)."""
    parameters: int | None
    memory_bytes: int | None
    """Weights, gradients and optimizer state in fp32, with the reference model where there is one; no activations."""
    seconds: float | None
    """From the speeds and lengths that the run folder holds for this stage; None where nothing was measured yet."""


def plan_recipe(recipe: Recipe, run_dir: Path) -> list[StagePlan]:
    """The plan of each stage, in order. `run_dir` is asked for what is done and how fast it went; it may not exist."""
    run = RunFolder(run_dir)
    begun = run.manifest().stages if run.manifest_path.exists() else {}
    hashes = stage_hashes(recipe)
    plans = []
    for name, stage in recipe.stages.items():
        same = name in begun and begun[name].hash == hashes[name]
        state = "done" if same and is_done(run, name, hashes[name]) else "goes on" if same else "to run"
        parameters = count_parameters(recipe, name)
        training, held_out = _rollouts(stage)
        plans.append(
            StagePlan(
                name=name,
                verb=stage.verb,
                state=state,
                starts_from=tuple(references(stage).values()),
                formula=_formula(stage),
                rollouts=training,
                heldout_rollouts=held_out,
                updates=_updates(stage),
                max_tokens=_max_tokens(stage),
                parameters=parameters,
                memory_bytes=None if parameters is None else parameters * _FP32_BYTES * _copies(stage),
                seconds=0.0 if state == "done" else _seconds(stage, read_metrics(run.metrics_path, name)),
            )
        )
    return plans


def lineage(recipe: Recipe) -> Tree:
    """The stages as a tree: each hangs below the model that it starts from."""
    tree = Tree(recipe.name)
    nodes: dict[str, Tree] = {}
    for name, stage in recipe.stages.items():
        parent = _parent(stage)
        if parent not in nodes:
            nodes[parent] = tree.add(parent)
        data = f", data: {', '.join(stage.data)}" if isinstance(stage, FineTuneStage) else ""
        node = nodes[parent].add(f"{name} ({_DOES[stage.verb]}{data})")
        if not isinstance(stage, EvaluateStage):
            nodes[name] = node
    return tree


def evaluation_steps(settings: EvaluationSettings, steps: int) -> list[int]:
    """Steps after which a reinforce stage evaluates: 0, every `every`, and the last; none when `every` is 0."""
    return sorted({0, steps, *range(0, steps, settings.every)}) if settings.every else []


def count_parameters(recipe: Recipe, name: str) -> int | None:
    """Parameters of the model that a stage trains or evaluates (the largest of several); None where it is unknown."""
    stage = recipe.stages[name]
    if isinstance(stage, FineTuneStage) and stage.shape is not None:
        return parameters_of_shape(stage.shape)
    models = [reference for setting, reference in references(stage).items() if setting.startswith("model")]
    known = [
        count_parameters(recipe, model) if model in recipe.stages else _stored_parameters(model) for model in models
    ]
    return max((count for count in known if count is not None), default=None)


def parameters_of_shape(shape: ModelShape) -> int:
    """Parameters of a decoder of that shape: embeddings, attention, SwiGLU and norms."""
    width, query, key = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = width * query + 2 * width * key + query * width
    attention += 2 * shape.head_dim if shape.family == "qwen3" else 0  # norms of q and k
    layer = attention + 3 * width * shape.intermediate_size + 2 * width
    embeddings = shape.vocab_size * width * (1 if shape.tied_embeddings else 2)
    return embeddings + shape.num_layers * layer + width


_DOES = {"reinforce": "reinforced", "fine_tune": "fine-tuned", "evaluate": "evaluated"}


def _parent(stage: Stage) -> str:
    match stage:
        case ReinforceStage():
            return stage.model
        case FineTuneStage():
            return stage.model or "random weights"
        case EvaluateStage():
            return ", ".join(stage.models)


def _rollouts(stage: Stage) -> tuple[int, int]:
    """Completions sampled (for training, on held-out problems)."""
    match stage:
        case ReinforceStage():
            held_out = stage.evaluation.problems * stage.evaluation.samples
            evaluations = len(evaluation_steps(stage.evaluation, stage.steps))
            return stage.steps * stage.prompts_per_step * stage.group_size, evaluations * held_out
        case FineTuneStage():
            return 0, 0
        case EvaluateStage():
            return 0, len(stage.models) * len(stage.tasks) * stage.problems * stage.samples


def _formula(stage: Stage) -> str:
    match stage:
        case ReinforceStage():
            return f"{stage.steps:,} steps x {stage.prompts_per_step} prompts x {stage.group_size} samples"
        case FineTuneStage():
            return f"{stage.steps:,} steps x {stage.tokens_per_step:,} tokens"
        case EvaluateStage():
            counts = f"{len(stage.models)} models x {len(stage.tasks)} tasks x {stage.problems} problems"
            return f"{counts} x {stage.samples} samples"


def _updates(stage: Stage) -> int:
    match stage:
        case ReinforceStage():
            return stage.steps * stage.updates_per_step
        case FineTuneStage():
            return stage.steps
        case EvaluateStage():
            return 0


def _max_tokens(stage: Stage) -> int:
    training, held_out = _rollouts(stage)
    match stage:
        case ReinforceStage():
            sampling = stage.evaluation.sampling or stage.sampling
            return training * stage.sampling.max_tokens + held_out * sampling.max_tokens
        case FineTuneStage():
            return stage.steps * stage.tokens_per_step
        case EvaluateStage():
            return held_out * stage.sampling.max_tokens


def _copies(stage: Stage) -> int:
    """How many times the parameters lie in memory."""
    match stage:
        case ReinforceStage():
            return _TRAINED_COPIES + (stage.algorithm.kl.beta > 0)
        case FineTuneStage():
            return _TRAINED_COPIES
        case EvaluateStage():
            return 1


def _seconds(stage: Stage, measured: list[Line]) -> float | None:
    """Time of the whole stage at the measured speeds (tokens a second) and length (tokens a completion)."""
    sampling, training = _mean(measured, "speed/rollout_tokens_per_s"), _mean(measured, "speed/train_tokens_per_s")
    if isinstance(stage, FineTuneStage):
        return _max_tokens(stage) / training if training else None
    length = _mean(measured, "length/mean")
    trained, held_out = _rollouts(stage)
    if not sampling or length is None or (trained and not training):
        return None
    return (trained + held_out) * length / sampling + (trained * length / training if training else 0.0)


def _mean(lines: Iterable[Line], name: str) -> float | None:
    values = [value for _, value in series(lines, name)]
    return fmean(values) if values else None


def _stored_parameters(model: str) -> int | None:
    """Parameters in the safetensors files of a folder or of the embedded model, from their headers alone."""
    folder = Path(str(importlib.resources.files("ponder.mini"))) / "weights" if model == "mini" else Path(model)
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
