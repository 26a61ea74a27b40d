"""A recipe on a cluster: where each stage computes, how long it takes, what does not fit and what would mend it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ponder.capacity.assumptions import Assumptions
from ponder.capacity.hardware import Cluster
from ponder.capacity.jobs import Layout, RolloutJob, TrainingJob
from ponder.capacity.memory import RolloutMemory, TrainingMemory, judge_bytes, rollout_memory, training_memory
from ponder.capacity.shapes import DecoderShape
from ponder.capacity.timing import RolloutTime, UpdateTime, handover_s, rollout_time, update_time
from ponder.capacity.workload import Workload, asks_for_gpus, workload
from ponder.errors import UsageError
from ponder.lineage import running_order
from ponder.recipe import LoraSettings, Recipe

Schedule = Literal["synchronous", "one_step_behind", "asynchronous"]
_GB = 10**9
_MOST_DEVICES = 1 << 14
_SPLITS = 64  # of the devices into samplers and trainers that are tried


@dataclass(frozen=True)
class StepEstimate:
    """One step of a stage on one layout; a half that has no work is None, and so is its memory."""

    layout: Layout
    rollout: RolloutTime | None
    update: UpdateTime | None
    handover_s: float
    step_s: float
    rollout_memory: RolloutMemory | None
    training_memory: TrainingMemory | None
    judge_bytes: float | None
    """On the fullest of the reward models' own devices; None where they have none."""
    problems: tuple[str, ...]
    """What does not fit, a sentence each; the times are then those of devices with more memory."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage."""

    name: str
    verb: str
    model: DecoderShape
    mean_tokens: float | None
    """Of a completion; None where nothing is drawn."""
    longest_tokens: float | None
    tokens_per_step: float
    """Of prompts and completions, or of examples."""
    steps: float | None
    step: StepEstimate
    evaluation_s: float
    """Of all held-out evaluations of the stage."""
    hours: float | None
    """None where the number of steps is not known."""
    gpu_hours: float | None
    advice: tuple[str, ...]
    """What would make it fit, or much faster, or its time known."""


@dataclass(frozen=True)
class ClusterEstimate:
    """A whole recipe; stages that run no model are left out."""

    cluster: Cluster
    assumptions: Assumptions
    stages: tuple[StageEstimate, ...]

    @property
    def gpu_hours(self) -> float:
        """Of all stages that fit and whose time is known, one after another."""
        return sum(stage.gpu_hours or 0.0 for stage in self.stages if not stage.step.problems)

    @property
    def complete(self) -> bool:
        """Whether every stage is in `gpu_hours`."""
        return all(stage.gpu_hours is not None and not stage.step.problems for stage in self.stages)


def estimate_recipe(recipe: Recipe, cluster: Cluster, assumptions: Assumptions) -> ClusterEstimate:
    """Every stage of a recipe on a cluster.

    Where the recipe asks for GPUs on Ray, its own workers, ranks and devices a worker are taken. Otherwise samplers
    with tensor parallelism, as vLLM has it, are assumed, and the fastest split that fits is found.

    Raises `UsageError` for a model of unknown size, for more workers and ranks than there are devices, and for
    shared devices that are to do both at once.
    """
    another_engine = cluster.devices > 1 or recipe.cluster.kind == "ray"
    stages = []
    for name in running_order(recipe):
        work = workload(recipe, name, assumptions, another_engine)
        if work is not None:
            stages.append(_stage(recipe, name, work, cluster, assumptions))
    return ClusterEstimate(cluster, assumptions, tuple(stages))


def _stage(recipe: Recipe, name: str, work: Workload, cluster: Cluster, a: Assumptions) -> StageEstimate:
    schedule = recipe.cluster.schedule if work.rollouts and work.training else "synchronous"
    staleness = recipe.cluster.max_staleness
    layouts = list(_layouts(recipe, work, cluster))
    step = best_step(work, layouts, a, schedule, staleness)
    evaluation_s = work.evaluation_count * _rollout_s(work.model, work.evaluations, step.layout, a)
    hours = None if work.steps is None else (work.steps * step.step_s + evaluation_s) / 3600
    lengths = work.rollouts.lengths if work.rollouts else None
    return StageEstimate(
        name=name,
        verb=recipe.stages[name].verb,
        model=work.model,
        mean_tokens=lengths.mean if lengths else None,
        longest_tokens=lengths.longest if lengths else None,
        tokens_per_step=_tokens(work),
        steps=work.steps,
        step=step,
        evaluation_s=evaluation_s,
        hours=hours,
        gpu_hours=None if hours is None else hours * cluster.devices,
        advice=(
            *_to_fit(name, work, step, a),
            *_to_speed_up(work, layouts, a, schedule, staleness, step),
            *_to_know(work),
        ),
    )


def _tokens(work: Workload) -> float:
    if work.training is not None:
        return work.training.tokens
    return work.rollouts.completions * work.rollouts.lengths.sequence if work.rollouts else 0.0


# --- where ---------------------------------------------------------------------------------------------------------


def _layouts(recipe: Recipe, work: Workload, cluster: Cluster) -> Iterator[Layout]:
    """Every way in which the cluster can carry out a stage, as far as neither recipe nor cluster say."""
    device, judges = cluster.device, _judge_devices(recipe, work)
    devices = cluster.devices - judges
    if asks_for_gpus(recipe):
        yield _layout_of_recipe(recipe, work, cluster)
    elif devices < 1:
        raise UsageError(
            f"cluster.reward_models: devices of their own ({judges}) leave none of --cluster's {cluster.devices} to "
            "sample and train: set it to shared, or name a larger cluster"
        )
    elif work.rollouts is None:
        yield Layout(device, 0, devices)
    elif work.training is None:
        yield from (Layout(device, devices, 0, tp) for tp in _powers_of_two(devices))
    elif cluster.shared or devices == 1:
        if recipe.cluster.schedule != "synchronous":
            raise UsageError(
                f"cluster.schedule {recipe.cluster.schedule!r} samples and trains at once, which shared devices "
                "cannot: write --cluster as 8xH100:rollout=4,train=4, or set cluster.schedule=synchronous"
            )
        whole = Layout(device, devices, devices, shared=True, swapped=devices > 1, judge_devices=judges)
        yield from (replace(whole, tensor_parallel=tp) for tp in _powers_of_two(devices))
    elif cluster.rollout is not None:
        rollout = min(cluster.rollout, devices - 1)
        split = Layout(device, rollout, devices - rollout, judge_devices=judges)
        yield from (replace(split, tensor_parallel=tp) for tp in _powers_of_two(rollout))
    else:
        grain = max(1, devices // _SPLITS)
        for tp in _powers_of_two(devices - 1):
            step = max(tp, grain)
            for rollout in range(step, devices, step):
                yield Layout(device, rollout, devices - rollout, tp, judge_devices=judges)


def _judge_devices(recipe: Recipe, work: Workload) -> int:
    """Devices that only reward models have: whole ones, of which several may share one."""
    if work.training is None or work.training.judge_place != "own":
        return 0
    each = recipe.cluster.reward_models.gpus or 1.0  # as if, where the recipe asks for no GPUs at all
    return math.ceil(len(work.training.judges) * each)


def _layout_of_recipe(recipe: Recipe, work: Workload, cluster: Cluster) -> Layout:
    """Those of its workers, ranks and reward models that the stage uses; the others wait."""
    rollout, trainer, judges = recipe.cluster.rollout, recipe.cluster.trainer, _judge_devices(recipe, work)
    tp = rollout.vllm.tensor_parallel if rollout.engine == "vllm" else 1
    needed = rollout.workers * tp + trainer.ranks + judges
    if needed > cluster.devices:
        also = f" and reward models on {judges}" if judges else ""
        raise UsageError(
            f"cluster.rollout ({rollout.workers} workers of {tp} devices) and cluster.trainer ({trainer.ranks} ranks)"
            f"{also} need {needed} devices, --cluster has {cluster.devices}: lower cluster.rollout.workers or "
            "cluster.trainer.ranks, or name a larger cluster"
        )
    sampling = rollout.workers * tp if work.rollouts else 0
    return Layout(cluster.device, sampling, trainer.ranks if work.training else 0, tp, judge_devices=judges)


def _powers_of_two(most: int) -> list[int]:
    """1, 2, 4 .. up to 64 or `most`."""
    return [1 << i for i in range(7) if 1 << i <= most]


# --- how long ------------------------------------------------------------------------------------------------------


def best_step(
    work: Workload, layouts: Sequence[Layout], a: Assumptions, schedule: Schedule = "synchronous", staleness: int = 1
) -> StepEstimate:
    """The fastest layout among those that fit; samplers within one node come before those across nodes."""
    steps = [step_on(work, layout, a, schedule, staleness) for layout in layouts]
    return min(
        steps,
        key=lambda s: (len(s.problems), s.layout.tensor_parallel > s.layout.device.devices_per_node, s.step_s),
    )


def step_on(
    work: Workload, layout: Layout, a: Assumptions, schedule: Schedule = "synchronous", staleness: int = 1
) -> StepEstimate:
    """One step of a stage on one layout."""
    shape, device, problems = work.model, layout.device, []
    usable = a.usable_memory * device.memory_bytes
    training: TrainingMemory | None = None
    update: UpdateTime | None = None
    if work.training is not None:
        training = training_memory(shape, work.training, layout.train_devices)
        update = update_time(shape, work.training, device, layout.train_devices, a)
        if training.total_bytes > usable:
            problems.append(_too_large("training", training.total_bytes, usable))
    judging = None if work.training is None else _judging_bytes(work.training, layout)
    if judging is not None and judging > usable:
        problems.append(_too_large("scoring by reward models", judging, usable))
    memory: RolloutMemory | None = None
    rollout: RolloutTime | None = None
    if work.rollouts is not None:
        job, waits = work.rollouts, True
        if schedule == "asynchronous":
            job, waits = replace(job, prompts=job.prompts * (1 + staleness)), False
        memory = _sampler_memory(shape, job, layout, training, a)
        if memory is None:
            problems.append(
                f"sampling does not fit: weights and one completion of {job.lengths.longest:,.0f} tokens on "
                f"{layout.tensor_parallel} x {usable / _GB:.0f} GB"
            )
        rollout = rollout_time(
            shape,
            job,
            device,
            layout.replicas,
            layout.tensor_parallel,
            _or_one(memory, shape, job, layout),
            a,
            not waits,
        )
        if schedule == "asynchronous":
            rollout = _scaled(rollout, 1 / (1 + staleness))
    both = work.rollouts is not None and work.training is not None
    hand = handover_s(shape, layout, work.rollouts.weight_bytes, a) if both and work.rollouts else 0.0
    rollout_s, update_s = rollout.total_s if rollout else 0.0, update.total_s if update else 0.0
    step_s = (rollout_s + update_s if schedule == "synchronous" else max(rollout_s, update_s)) + hand
    return StepEstimate(layout, rollout, update, hand, step_s, memory, training, judging, tuple(problems))


def _judging_bytes(job: TrainingJob, layout: Layout) -> float | None:
    """Of the largest reward models, as many as share one of their own devices; None where they have none."""
    if not layout.judge_devices:
        return None
    sizes = sorted((judge_bytes(judge, job) for judge in job.judges), reverse=True)
    return sum(sizes[: math.ceil(len(sizes) / layout.judge_devices)])


def _sampler_memory(
    shape: DecoderShape, job: RolloutJob, layout: Layout, training: TrainingMemory | None, a: Assumptions
) -> RolloutMemory | None:
    resident = layout.shared and not layout.swapped and training is not None
    taken = training.kept_bytes if resident and training is not None else 0.0
    return rollout_memory(
        shape, job, layout.device, layout.replicas, layout.tensor_parallel, a.usable_memory, taken, not resident
    )


def _or_one(memory: RolloutMemory | None, shape: DecoderShape, job: RolloutJob, layout: Layout) -> RolloutMemory:
    """Where nothing fits, the time is that of one sequence at once: a figure to compare remedies by."""
    return memory or RolloutMemory(job.weight_bytes * shape.parameters / layout.tensor_parallel, 0.0, 1.0)


def _scaled(time: RolloutTime, factor: float) -> RolloutTime:
    return RolloutTime(time.prefill_s * factor, time.decode_s * factor, time.decode_steps * factor)


def _rollout_s(shape: DecoderShape, job: RolloutJob | None, layout: Layout, a: Assumptions) -> float:
    """Of completions drawn while nothing trains, by the samplers of a layout."""
    if job is None:
        return 0.0
    memory = _or_one(_sampler_memory(shape, job, layout, None, a), shape, job, layout)
    return rollout_time(shape, job, layout.device, layout.replicas, layout.tensor_parallel, memory, a).total_s


# --- what to change ------------------------------------------------------------------------------------------------


def _too_large(what: str, needed: float, usable: float) -> str:
    return f"{what} needs {needed / _GB:,.1f} of {usable / _GB:,.1f} GB a device"


def _to_fit(name: str, work: Workload, step: StepEstimate, a: Assumptions) -> Iterator[str]:
    usable, job = a.usable_memory * step.layout.device.memory_bytes, work.training
    if job is not None and step.training_memory is not None and step.training_memory.total_bytes > usable:
        if step.training_memory.judges_bytes:
            yield "reward models are apart with cluster.reward_models={place: separate, gpus: 1} on Ray"
            job = replace(job, judge_place="own")
        if training_memory(work.model, job, step.layout.train_devices).total_bytes > usable:
            yield _training_remedy(name, work.model, job, step.layout.train_devices, usable)
    if work.rollouts is not None and step.rollout_memory is None:
        yield "sampling fits with more devices a worker (cluster.rollout.vllm.tensor_parallel) or fewer max_tokens"
    if job is not None and step.judge_bytes is not None and step.judge_bytes > usable:
        yield _judge_remedy(job, step.layout, usable)


def _judge_remedy(job: TrainingJob, layout: Layout, usable: float) -> str:
    """What costs least of: a device each, half precision, smaller models."""

    def fits(changed: TrainingJob) -> bool:
        return all(judge_bytes(judge, changed) <= usable for judge in job.judges)

    apart = ["cluster.reward_models.gpus=1"] if layout.judge_devices < len(job.judges) else []
    if fits(job):
        return f"reward models fit with {apart[0]}"
    if fits(replace(job, arithmetic_bytes=2)):
        return f"reward models fit with {' and '.join([*apart, 'precision=bf16'])}"
    largest = max(job.judges, key=lambda judge: judge_bytes(judge, job))
    besides = judge_bytes(largest, job) - job.arithmetic_bytes * largest.shape.parameters
    most = max(0.0, usable - besides) / job.arithmetic_bytes
    return f"reward models of at most {most / _GB:.0f}B parameters fit (the base of their train_reward stages)"


def _training_remedy(name: str, shape: DecoderShape, job: TrainingJob, ranks: int, usable: float) -> str:
    """The fewest changes after which training fits, those first that cost least."""

    def fits(changed: TrainingJob, on: int = ranks) -> bool:
        return training_memory(shape, changed, on).total_bytes <= usable

    remedies = {text: change for text, change in _remedies(name, job).items() if change(job) != job}
    for size in range(1, len(remedies) + 1):
        for chosen in itertools.combinations(remedies, size):
            if fits(functools.reduce(lambda changed, text: remedies[text](changed), chosen, job)):
                return f"training fits with {' and '.join(chosen)}"
    most = functools.reduce(lambda changed, change: change(changed), remedies.values(), job)
    also = f" and {' and '.join(remedies)}" if remedies else ""
    for more in itertools.takewhile(lambda count: count <= _MOST_DEVICES, (ranks << i for i in itertools.count(1))):
        if fits(most, more):
            return f"training fits on {more} devices{also}"
    lora = LoraSettings()
    if job.lora is None and fits(replace(most, lora=lora)):
        return f"training fits with stages.{name}.lora.rank={lora.rank}{also}"
    return "one sequence is too long for a device: lower sampling.max_tokens, or context"


def _remedies(name: str, job: TrainingJob) -> dict[str, Callable[[TrainingJob], TrainingJob]]:
    """What a person can set, and what it does to a job."""
    sequence = int(job.lengths.prompt + job.lengths.longest) + 1
    budget = min(job.tokens_per_micro_batch, sequence)
    return {
        "activation_checkpointing=true": lambda j: replace(j, checkpointing=True),
        "cluster.trainer.sharding=fsdp2": lambda j: replace(j, sharding="fsdp2"),
        "precision=bf16": lambda j: replace(j, arithmetic_bytes=2),
        f"stages.{name}.tokens_per_micro_batch={budget}": lambda j: replace(j, tokens_per_micro_batch=budget),
    }


def _to_speed_up(
    work: Workload, layouts: Sequence[Layout], a: Assumptions, schedule: Schedule, staleness: int, step: StepEstimate
) -> Iterator[str]:
    half = replace(
        work,
        rollouts=work.rollouts and replace(work.rollouts, weight_bytes=2),
        training=work.training and replace(work.training, arithmetic_bytes=2),
    )
    faster = best_step(half, layouts, a, schedule, staleness).step_s
    if half != work and step.step_s > 1.2 * faster:
        yield "precision=bf16 makes it faster"


def _to_know(work: Workload) -> Iterator[str]:
    if work.training is not None and work.training.judges and work.training.judge_place == "cpu":
        yield (
            "the time of reward models, on CPUs, is not counted: cluster.reward_models={place: separate, gpus: 1} "
            "gives them devices"
        )
    if work.unknown:
        yield f"the number of steps is known with {work.unknown}"
