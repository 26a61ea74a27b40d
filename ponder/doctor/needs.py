"""What a recipe asks of the machines that it runs on: processes and their shares, models, and room on the disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ponder.lineage import references
from ponder.model.embedded import FOLDERS
from ponder.recipe import MINI_WORLD, EvaluateStage, Recipe, ReinforceStage, SampleStage

_FP32_BYTES_A_STORED_BYTE = 2
"""Weights of two bytes, as most are published, become weights of four."""


@dataclass(frozen=True)
class Share:
    """Equal processes of a cluster, and what Ray reserves for each of them."""

    setting: str
    """Where the recipe says so."""
    count: int
    gpus: float
    cpus: float


@dataclass(frozen=True)
class Node:
    """GPUs and CPU cores of a machine: those that it has, or those that are taken of it."""

    gpus: float
    cpus: float


@dataclass(frozen=True)
class Needs:
    """What one start of a recipe needs; the defaults are those of no recipe at all."""

    run_dir: Path = Path("runs")
    place: Literal["local", "ray here", "ray cluster"] = "local"
    """One process; Ray, started on this machine for the run; or a Ray cluster that runs already."""
    gpu_here: bool = False
    """Whether this machine itself must have a GPU."""
    vllm_python: str | None = None
    """The interpreter of vLLM's environment, where it samples."""
    shares: tuple[Share, ...] = ()
    refuses_idle_gpus: bool = False
    """Whether the run, on Ray, stops where there are GPUs: nobody reserves them, and nobody says `device: cpu`."""
    trained_bytes: tuple[int, ...] = ()
    """fp32 weights of what each training stage starts from, where its files are here."""
    models: tuple[Path, ...] = ()
    """Folders and files outside the package that stages start from."""
    hub: tuple[str, ...] = ()
    """Models that are read from the Hugging Face Hub."""
    runs_programs: bool = False
    """Whether programs written by a model are judged."""

    @property
    def asks_for_gpus(self) -> bool:
        """Whether any machine must have a GPU."""
        return self.gpu_here or any(share.gpus for share in self.shares)

    @property
    def weight_bytes(self) -> int:
        """fp32 weights of the largest model that is trained; 0 where unknown."""
        return max(self.trained_bytes, default=0)


def needs_of(recipe: Recipe, run_dir: Path, address: str | None = None, runs_programs: bool = False) -> Needs:
    """What a recipe needs; `address` stands for the recipe's `cluster.address` where it is given."""
    cluster = recipe.cluster
    on_ray = cluster.kind == "ray"
    joins = (address or cluster.address) is not None
    shares = shares_of(recipe) if on_ray else ()
    gpus = recipe.device == "cuda" or any(share.gpus for share in shares)
    outside = dict.fromkeys(_outside(recipe))
    return Needs(
        run_dir=run_dir,
        place="local" if not on_ray else "ray cluster" if joins else "ray here",
        gpu_here=gpus and not (on_ray and joins),
        vllm_python=cluster.rollout.vllm.python if on_ray and cluster.rollout.engine == "vllm" else None,
        shares=shares,
        refuses_idle_gpus=on_ray and recipe.device == "auto" and not cluster.reserves_gpus,
        trained_bytes=tuple(_trained_bytes(recipe)),
        models=tuple(Path(name) for name in outside if Path(name).exists()),
        hub=tuple(name for name in outside if not Path(name).exists() and name.count("/") == 1),
        runs_programs=runs_programs,
    )


def shares_of(recipe: Recipe) -> tuple[Share, ...]:
    """The trainers' ranks, the rollout workers and the reward models' own, each with what Ray reserves for it."""
    rollout, trainer, judge = recipe.cluster.rollout, recipe.cluster.trainer, recipe.cluster.reward_models
    shares = [
        Share("cluster.trainer.ranks", trainer.ranks, trainer.gpus, trainer.cpus),
        Share("cluster.rollout.workers", rollout.workers, rollout.gpus, rollout.cpus),
    ]
    judges = _reward_models(recipe) if judge.place == "separate" else 0
    return (*shares, Share("cluster.reward_models", judges, judge.gpus, judge.cpus)) if judges else tuple(shares)


def _reward_models(recipe: Recipe) -> int:
    """The most that one stage rewards by."""
    stages = [stage for stage in recipe.stages.values() if isinstance(stage, ReinforceStage)]
    return max((len(stage.reward_models) for stage in stages), default=0)


def without_room(shares: Sequence[Share], nodes: Sequence[Node]) -> Share | None:
    """The first share of which a process finds no node with room for it, the largest placed first; None if all do."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for share in _largest_first(shares):
        for _ in range(share.count):
            room = next((node for node in free if node[0] >= share.gpus and node[1] >= share.cpus), None)
            if room is None:
                return share
            room[0] -= share.gpus
            room[1] -= share.cpus
    return None


def spread(shares: Sequence[Share], most: Node) -> list[Node] | None:
    """What is taken of each node that the processes need, the largest placed first; None if one fits nowhere."""
    taken: list[list[float]] = []
    for share in _largest_first(shares):
        if share.gpus > most.gpus or share.cpus > most.cpus:
            return None
        for _ in range(share.count):
            fits = (n for n in taken if n[0] + share.gpus <= most.gpus and n[1] + share.cpus <= most.cpus)
            room = next(fits, None)
            if room is None:
                room = [0.0, 0.0]
                taken.append(room)
            room[0] += share.gpus
            room[1] += share.cpus
    return [Node(math.ceil(gpus), math.ceil(cpus)) for gpus, cpus in taken]


def _largest_first(shares: Sequence[Share]) -> list[Share]:
    return sorted(shares, key=lambda share: (-share.gpus, -share.cpus))


def _outside(recipe: Recipe) -> Iterator[str]:
    """References that lead out of the recipe and the package."""
    for stage in recipe.stages.values():
        for name in references(stage).values():
            if name not in recipe.stages and name not in FOLDERS and name != MINI_WORLD:
                yield name


def _trained_bytes(recipe: Recipe) -> Iterator[int]:
    for stage in recipe.stages.values():
        if isinstance(stage, EvaluateStage | SampleStage):
            continue
        size = _stored_bytes(recipe, stage.model)
        if size:
            yield size * _FP32_BYTES_A_STORED_BYTE


def _stored_bytes(recipe: Recipe, model: str | None) -> int:
    """Size of the weights' files behind a reference, through the stages; 0 where they are not here."""
    seen: set[str] = set()
    while model in recipe.stages and model not in seen:
        seen.add(model)
        model = getattr(recipe.stages[model], "model", None)
    if model is None:
        return 0
    path = FOLDERS.get(model, Path(model))
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    return sum(file.stat().st_size for file in files)
