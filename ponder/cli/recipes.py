"""Commands on a recipe: run it, plan it, see what it needs, and launch it elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ponder.capacity.assumptions import parse_assumptions
from ponder.capacity.estimate import estimate_recipe
from ponder.capacity.hardware import parse_cluster
from ponder.capacity.render import estimate_json, estimate_text
from ponder.cli.app import (
    JsonFlag,
    RecipeArgument,
    RunOption,
    SetOption,
    app,
    count,
    print_json,
)
from ponder.cluster.supervise import STOP_MARGIN_S, is_supervised, join_supervisor, supervise
from ponder.doctor import Check, Needs, diagnose, needs_of, problems, summary_rows
from ponder.errors import RefusedError, UsageError
from ponder.evaluation.benchmarks import get_benchmark
from ponder.launch import Kind as LaunchKind
from ponder.launch import LaunchSettings, write_launch
from ponder.pipeline import default_run_dir, discard_results, parse_recipe, run_recipe
from ponder.plan import StagePlan, lineage, plan_recipe
from ponder.progress import duration
from ponder.recipe import Recipe
from ponder.run import RunFolder


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    run_dir: RunOption = None,
    to: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what the same settings left before, and start over.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings only.")] = False,
) -> None:
    """Carry out a recipe, or go on with it after a stop.

    A stage that is done runs again only when something it depends on has changed; its old result is then kept beside
    the new one. Ctrl-C leaves the run resumable (exit code 5): the same command goes on where it was. SIGTERM does too,
    once a training stage has ended its step and saved it, or after the recipe's `stop_s` seconds.

    \b
    Examples:
      ponder run r1-zero-mini
      ponder run r1-zero-mini --set stages.zero.steps=50 --set seed=1 --run runs/short
      ponder run my-recipe.yaml --to zero
    """
    if is_supervised():
        join_supervisor()
    elif (loaded := parse_recipe(recipe, set_ or ())).cluster.kind == "ray":
        folder = default_run_dir(loaded) if run_dir is None else run_dir
        if fresh:
            discard_results(loaded, folder, to, quiet)
        raise typer.Exit(_run_supervised(loaded, folder))
    result = run_recipe(recipe, set_ or (), run_dir, to=to, fresh=fresh, quiet=quiet)
    if not quiet:
        typer.echo(f"{result.path}: ran {_names(result.ran)}; unchanged {_names(result.cached)}", err=True)
        typer.echo(f"next: ponder report {result.path}", err=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    run_dir: RunOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NxDEVICE",
            help="Estimate memory, time and GPU hours there: 64xH800, 8xH100:rollout=4,train=4 or 8xH100:shared.",
        ),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume", metavar="NAME=VALUE", help="With --cluster: replace a factor, as mfu=0.3. Repeatable."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a recipe will do before it does it.

    Prints who starts from whom, and for each stage its rollouts, updates, tokens, memory and time; a dash
    stands for what is not known before it runs. The time is known once the run folder holds measured speeds:
    run a few steps first. With --cluster: what it would need on named hardware (docs/capacity.md).

    \b
    Examples:
      ponder plan r1-zero-mini
      ponder plan r1-zero-mini --set stages.zero.group_size=32 --json
      ponder plan r1-zero-qwen2.5-7b --cluster 8xH100 --assume mean_tokens=4000
    """
    loaded = parse_recipe(recipe, set_ or ())
    if cluster is not None:
        _plan_on(loaded, cluster, assume or (), as_json)
        return
    if assume:
        raise UsageError("--assume needs --cluster: without it, times are those that were measured")
    folder = default_run_dir(loaded) if run_dir is None else run_dir
    plans = plan_recipe(loaded, folder)
    if as_json:
        print_json({"recipe": loaded.name, "run": str(folder), "stages": [asdict(stage) for stage in plans]})
        return
    console = Console()
    console.print(lineage(loaded))
    for stage in plans:
        console.print(_plan_text(stage), highlight=False, soft_wrap=True)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="What is to run; none checks in general.")
    ] = None,
    set_: SetOption = None,
    run_dir: RunOption = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDRESS", help="A Ray cluster: auto or host:port. [default: the recipe's]"),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", min=1, help="Wait until the cluster has so many nodes.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check what a run needs, here and on every node of a cluster (docs/cluster.md).

    Python, torch and its build, GPUs, engines, Ray, sandbox, disks, memory, ports; and between nodes versions, clocks,
    network and shared folders. Nothing is downloaded, no GPU is taken. Exit code 3 when something would stop the run.

    \b
    Examples:
      ponder doctor
      ponder doctor my-recipe.yaml --address auto --nodes 4
    """
    folder = Path("runs") if run_dir is None else run_dir
    needs, deadline_s = Needs(folder, "local" if address is None else "ray cluster"), 600.0
    if recipe is not None:
        loaded = parse_recipe(recipe, set_ or ())
        address = address or loaded.cluster.address
        folder = default_run_dir(loaded) if run_dir is None else run_dir
        needs = needs_of(loaded, folder, address, _judges_programs(loaded))
        deadline_s = loaded.cluster.deadlines.start_s
    checks = diagnose(needs, address, nodes, deadline_s)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        _print_checks(checks)
    found = problems(checks)
    if found:
        raise RefusedError(f"{len(found)} of {len(checks)} checks found what would stop a run: do what they advise")


@app.command()
def launch(
    kind: Annotated[LaunchKind, typer.Argument(metavar="KIND", help="slurm, kubernetes or node (one machine).")],
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder for the files.")],
    set_: SetOption = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="The run folder, which all nodes must see.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", metavar="N", min=0, help="GPUs of a node.")] = 8,
    memory: Annotated[int, typer.Option("--memory", metavar="GIB", min=1, help="Memory of a node.")] = 64,
    hours: Annotated[
        float, typer.Option("--hours", metavar="H", min=0.1, max=8760, help="Time limit of one Slurm job.")
    ] = 24.0,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Of Slurm.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Of Slurm.")] = None,
    image: Annotated[str, typer.Option("--image", metavar="NAME", help="Of the container, in Kubernetes.")] = (
        "ponder:latest"
    ),
    claim: Annotated[str, typer.Option("--claim", metavar="NAME", help="Of the shared volume, in Kubernetes.")] = (
        "ponder"
    ),
) -> None:
    """Write the files that run a recipe on Slurm, Kubernetes or one machine.

    They can be read and edited; their numbers follow from the recipe's `cluster`. Nothing is submitted.

    \b
    Examples:
      ponder launch slurm my-recipe.yaml --to jobs/zero --hours 12 --partition gpu
      ponder launch kubernetes my-recipe.yaml --to jobs/zero --image registry.example/ponder:1
      ponder launch node my-recipe.yaml --to jobs/zero
    """
    settings = LaunchSettings(gpus_per_node, memory, hours, partition, account, image, claim)
    for path in write_launch(kind, parse_recipe(recipe, set_ or ()), to, run_dir, settings):
        typer.echo(path)


def _run_supervised(recipe: Recipe, run_dir: Path) -> int:
    """This command again, in a process that is started anew when it dies; returns its exit code."""
    # what --fresh asks for is done once: a later start must not discard what an earlier one has trained
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    return supervise(
        [sys.executable, "-m", "ponder", *arguments],
        progress=RunFolder(run_dir).progress,
        max_restarts=recipe.cluster.max_restarts,
        stop_s=recipe.stop_s + STOP_MARGIN_S,
        say=lambda text: typer.echo(f"ponder: {text}", err=True),
    )


def _judges_programs(recipe: Recipe) -> bool:
    names = [name for stage in recipe.stages.values() for name in getattr(stage, "benchmarks", ())]
    return any(get_benchmark(name).verifier == "code" for name in names)


def _print_checks(checks: Sequence[Check]) -> None:
    for where, check in summary_rows(checks):
        place = f" ({where})" if where else ""
        typer.echo(f"{check.state:<8} {check.name}{place}: {check.found}")
        if check.state != "ok":
            typer.echo(f"{'':<8} -> {check.advice}")


def _names(stages: Iterable[str]) -> str:
    return ", ".join(stages) or "nothing"


def _plan_on(recipe: Recipe, cluster: str, assume: Iterable[str], as_json: bool) -> None:
    """Print what a recipe needs on named hardware."""
    estimate = estimate_recipe(recipe, parse_cluster(cluster), parse_assumptions(assume))
    if as_json:
        print_json({"recipe": recipe.name, **estimate_json(estimate)})
    else:
        typer.echo(estimate_text(estimate))


def _plan_text(stage: StagePlan) -> str:
    sources = f" from {', '.join(stage.starts_from)}" if stage.starts_from else ""
    parts = [stage.verb + sources, stage.state, stage.formula]
    if stage.rollouts:
        parts[-1] += f" = {stage.rollouts:,} rollouts"
    if stage.heldout_rollouts:
        parts.append(f"{stage.heldout_rollouts:,} rollouts on held-out problems")
    if stage.updates != 0:
        parts.append(f"{count(stage.updates)} updates")
    if stage.max_tokens != 0:
        parts.append(f"at most {count(stage.max_tokens)} tokens")
    parameters = "-" if stage.parameters is None else f"{stage.parameters / 1e6:.2f} M"
    memory = "-" if stage.memory_bytes is None else f"{stage.memory_bytes / 2**20:,.0f} MiB"
    if stage.starts_from:
        parts.append(f"{parameters} parameters, {memory} besides activations")
    parts.append("time not measured yet" if stage.seconds is None else f"about {duration(stage.seconds)}")
    return f"{stage.name}: " + "; ".join(parts)
