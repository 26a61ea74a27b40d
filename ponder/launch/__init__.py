"""Files that run a recipe on Slurm, Kubernetes or one machine: made from the recipe, meant to be read and edited.

Nothing is submitted and nothing is asked of a cluster. The texts are in `templates/`; here are the numbers.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ponder.doctor.needs import Node, shares_of, spread
from ponder.errors import UsageError
from ponder.recipe import Recipe, to_yaml
from ponder.store.files import atomic_write, make_folder

Kind = Literal["slurm", "kubernetes", "node"]

FILES: dict[Kind, tuple[str, ...]] = {
    "slurm": ("job.sh",),
    "kubernetes": ("rayjob.yaml", "Dockerfile", "README.md"),
    "node": ("run.sh",),
}
"""What each kind consists of, besides recipe.yaml; the template of each has its name below templates/KIND/."""

_SHARED = "/shared"
"""Where a pod sees the shared volume."""
_VLLM_IN_IMAGE = "/opt/vllm/bin/python"
_WORD = re.compile(r"[\w.,:/@+-]+", re.ASCII)
"""What a name may look like that goes into a script as it is."""
_CLEANUP_S = 90
"""Seconds beside the recipe's `stop_s` for what comes after: the last words of the run, the end of Ray."""


@dataclass(frozen=True)
class LaunchSettings:
    """What a recipe does not say of the machines that it is to run on."""

    gpus_per_node: int = 8
    memory_gib: int = 64
    """Of a node."""
    hours: float = 24.0
    """Time limit of one job; the next one goes on."""
    partition: str | None = None
    account: str | None = None
    image: str = "ponder:latest"
    claim: str = "ponder"


def write_launch(
    kind: Kind, recipe: Recipe, to: Path, run_dir: Path | None = None, settings: LaunchSettings | None = None
) -> list[Path]:
    """Write the files of a kind into a folder; their paths. `run_dir` is where the run goes, on a disk of all nodes.

    Raises `UsageError` for a recipe of one process, for nodes that are too small, for names that no script may hold,
    and for files that exist.
    """
    wanted = LaunchSettings() if settings is None else settings
    _check_names(wanted)
    nodes = _nodes(kind, recipe, wanted)
    folder = to.absolute()
    values = _values(kind, recipe, nodes, wanted, folder, run_dir)
    texts = {"recipe.yaml": values["recipe_text"], **{file: _render(kind, file, values) for file in FILES[kind]}}
    for name in texts:
        if (folder / name).exists():
            raise UsageError(f"{folder / name} exists: choose another folder with --to, or remove it")
    make_folder(folder)
    for name, text in texts.items():
        atomic_write(folder / name, text)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
    return [folder / name for name in texts]


def _check_names(settings: LaunchSettings) -> None:
    for option in ("partition", "account", "image", "claim"):
        name = getattr(settings, option)
        if name is not None and not _WORD.fullmatch(name):
            raise UsageError(f"--{option} {name!r} must be one word of letters, digits and _ . , : / @ + -")


def _nodes(kind: Kind, recipe: Recipe, settings: LaunchSettings) -> list[Node]:
    """What the recipe takes of each node."""
    if recipe.cluster.kind == "local":
        raise UsageError("the recipe computes in one process: set `cluster: ray` to launch it, or use `ponder run`")
    nodes = spread(shares_of(recipe), Node(settings.gpus_per_node, math.inf))
    if nodes is None:
        raise UsageError(
            f"a worker or rank asks for more than the {settings.gpus_per_node} GPUs of a node: lower "
            "cluster.rollout.gpus, cluster.trainer.gpus or cluster.reward_models.gpus, or raise --gpus-per-node"
        )
    if kind == "node" and len(nodes) > 1:
        raise UsageError(
            f"the recipe fills {len(nodes)} nodes of {settings.gpus_per_node} GPUs, and `node` is one: launch it on "
            "slurm or kubernetes, or lower cluster.rollout.workers or cluster.trainer.ranks"
        )
    return nodes


def _values(
    kind: Kind, recipe: Recipe, nodes: list[Node], settings: LaunchSettings, folder: Path, run_dir: Path | None
) -> dict[str, Any]:
    """Everything that a template may name."""
    home = Path(_SHARED) if kind == "kubernetes" else Path.cwd()
    copy = _for(kind, recipe)
    minutes = math.ceil(settings.hours * 60)
    return {
        "name": recipe.name,
        "label": recipe.name.lower().replace("_", "-").replace(".", "-")[:40].strip("-"),
        "folder": str(folder),
        "home": str(home),
        "run": str(home / (Path("runs") / recipe.name if run_dir is None else run_dir)),
        "recipe_text": to_yaml(copy),
        "num_nodes": len(nodes),
        "gpus": int(max(node.gpus for node in nodes)),
        "cpus": int(max(node.cpus for node in nodes)),
        "driver_cpus": 1 + recipe.judging.workers,
        "memory_gib": settings.memory_gib,
        "shm_gib": max(1, settings.memory_gib // 4),
        "time": f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        "partition": settings.partition,
        "account": settings.account,
        "image": settings.image,
        "claim": settings.claim,
        "vllm": recipe.cluster.rollout.engine == "vllm",
        "start_s": math.ceil(recipe.cluster.deadlines.start_s),
        "stop_s": math.ceil(recipe.stop_s),
        "grace_s": math.ceil(recipe.stop_s) + _CLEANUP_S,
    }


def _for(kind: Kind, recipe: Recipe) -> Recipe:
    """The recipe as it runs there: in a pod it joins the Ray of the pod, and vLLM is the image's."""
    if kind != "kubernetes":
        return recipe
    vllm = recipe.cluster.rollout.vllm.model_copy(update={"python": _VLLM_IN_IMAGE})
    rollout = recipe.cluster.rollout.model_copy(update={"vllm": vllm})
    return recipe.model_copy(
        update={"cluster": recipe.cluster.model_copy(update={"address": "auto", "rollout": rollout})}
    )


def _render(kind: Kind, file: str, values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates" / kind),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="{##",  # "{#" is bash's count of a list
        comment_end_string="##}",
        autoescape=False,  # these are scripts: `quote` below is what makes a value safe in one
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template(f"{file}.j2").render(values)
