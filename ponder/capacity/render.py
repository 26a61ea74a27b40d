"""An estimate as text of at most 80 columns, and as plain values."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, fields
from typing import Any

from ponder.capacity.assumptions import Assumptions
from ponder.capacity.estimate import ClusterEstimate, StageEstimate
from ponder.capacity.jobs import Layout
from ponder.evaluation.tables import aligned

_WIDTH = 80
_LONGEST_NAME = 14
_GB = 10**9


def estimate_text(estimate: ClusterEstimate) -> str:
    """A line a stage, what does not fit and what to change, and what was assumed."""
    device, devices = estimate.cluster.device, estimate.cluster.devices
    usable = estimate.assumptions.usable_memory * device.memory_bytes / _GB
    head = ["stage", "devices", "GB", "draw s", "train s", "step s", "steps", "GPU h"]
    lines = [
        f"{devices} x {device.name}, {device.devices_per_node} a node, {usable:.0f} GB usable on each: "
        f"{_number(estimate.gpu_hours)} GPU hours{'' if estimate.complete else ' and more'}",
        aligned([head, *map(_row, estimate.stages)]),
        "devices: samplers x devices of each + training ranks (= instead of +: the same",
        "  devices in turn) + reward models' own; GB: on a sampler's / a rank's device",
    ]
    lines += [_wrapped(f"{', '.join(stages)}: {text}") for text, stages in _remarks(estimate).items()]
    lines.append(_wrapped(f"Assumed (--assume NAME=VALUE): {_assumed(estimate.assumptions)}."))
    lines.append(_wrapped("Arithmetic, not a measurement: docs/capacity.md has its errors beside published runs."))
    return "\n".join(lines)


def estimate_json(estimate: ClusterEstimate) -> dict[str, Any]:
    """The same as plain values; memory in bytes, times in seconds."""
    return {**asdict(estimate), "gpu_hours": estimate.gpu_hours}


def _row(stage: StageEstimate) -> list[str]:
    step = stage.step
    drawn = step.rollout is None or step.rollout_memory is not None
    memory = ["?"] if not drawn else []
    memory += [_number(m.total_bytes / _GB) for m in (step.rollout_memory, step.training_memory) if m is not None]
    return [
        stage.name if len(stage.name) <= _LONGEST_NAME else f"{stage.name[: _LONGEST_NAME - 2]}..",
        _where(step.layout),
        "/".join(memory),
        _number(None if step.rollout is None else step.rollout.total_s) if drawn else "?",
        _number(None if step.update is None else step.update.total_s),
        _number(step.step_s) if drawn else "?",
        "?" if stage.steps is None else _number(stage.steps),
        "no fit" if step.problems else "?" if stage.gpu_hours is None else _number(stage.gpu_hours),
    ]


def _where(layout: Layout) -> str:
    samplers = f"{layout.replicas}x{layout.tensor_parallel}"
    if not layout.rollout_devices:
        return str(layout.train_devices)
    if not layout.train_devices:
        return samplers
    judges = f"+{layout.judge_devices}" if layout.judge_devices else ""
    return f"{samplers}{'=' if layout.shared else '+'}{layout.train_devices}{judges}"


def _number(value: float | None) -> str:
    """Three figures at most; a dash for what there is not."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.3g}"
    return f"{value:.2f}" if value >= 0.01 else "<0.01"


def _remarks(estimate: ClusterEstimate) -> dict[str, list[str]]:
    """What reward models take, what does not fit and what to change, each once, with the stages that it is said of."""
    said: dict[str, list[str]] = {}
    for stage in estimate.stages:
        for text in dict.fromkeys((*_judging(stage), *stage.step.problems, *stage.advice)):
            said.setdefault(text, []).append(stage.name)
    return said


def _judging(stage: StageEstimate) -> list[str]:
    """What no column has room for; where it does not fit, the problem says it."""
    taken = stage.step.judge_bytes
    if taken is None or stage.step.problems:
        return []
    return [f"reward models take {_number(taken / _GB)} GB of a device of their own"]


def _assumed(assumptions: Assumptions) -> str:
    return ", ".join(f"{field.name} {getattr(assumptions, field.name):g}" for field in fields(assumptions))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
