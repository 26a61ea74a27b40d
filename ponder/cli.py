"""The command `ponder`. Each command parses its arguments, calls one function, and prints what it returns.

Exit codes: 0 done, 2 wrong use, 3 refused by preflight or gate, 4 broken input, 5 interrupted but resumable, 1 anything
else. A `PonderError`, or an error about a file, is one sentence on standard error; any other exception is a defect and
keeps its traceback.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from ponder.capacity.assumptions import parse_assumptions
from ponder.capacity.estimate import estimate_recipe
from ponder.capacity.hardware import parse_cluster
from ponder.capacity.render import estimate_json, estimate_text
from ponder.cluster.supervise import STOP_MARGIN_S, is_supervised, join_supervisor, supervise
from ponder.doctor import Check, Needs, diagnose, needs_of, problems, summary_rows
from ponder.errors import BrokenInputError, PonderError, RefusedError, UsageError
from ponder.evaluation.benchmarks import get_benchmark, is_benchmark
from ponder.evaluation.costs import hours, hours_head
from ponder.evaluation.tables import aligned, as_markdown, extra_tables, result_tables, settings_text
from ponder.launch import Kind as LaunchKind
from ponder.launch import LaunchSettings, write_launch
from ponder.model.formats import Format, WeightType
from ponder.pipeline import default_run_dir, discard_results, packaged_recipes, parse_recipe, run_recipe
from ponder.plan import StagePlan, lineage, plan_recipe
from ponder.progress import Reporter, duration
from ponder.recipe import Recipe
from ponder.run import RunFolder, StageRecord
from ponder.store.archive import archive_rollouts
from ponder.store.datasets import read_card
from ponder.store.files import atomic_write, atomic_write_json, disk_advice
from ponder.tasks import task_names
from ponder.verifiers import verifier_names


class OneSentenceGroup(TyperGroup):
    """Prints a `PonderError`, or what the system says of a file, as one sentence, and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PonderError as error:
            refused: PonderError = error
        except OSError as error:
            if error.filename is None:
                raise
            refused = BrokenInputError(f"cannot use {error.filename}: {disk_advice(error) or error.strerror}")
            refused.__cause__ = error
        typer.echo(f"ponder: {' '.join(str(refused).split())}", err=True)
        raise typer.Exit(refused.exit_code) from refused


app = typer.Typer(
    cls=OneSentenceGroup,
    help=(
        "Train reasoning models the way DeepSeek-R1 was trained, from a recipe, on this machine.\n\n"
        "\b\nStart here:\n"
        "  ponder plan r1-zero-mini      what the recipe will do, and how long it takes\n"
        "  ponder run r1-zero-mini       do it; the same command goes on after a stop\n"
        "  ponder report r1-zero-mini    one HTML page with the curves and the rollouts\n\n"
        "Exit codes: 0 done, 2 wrong use, 3 refused by preflight or gate, 4 broken input, "
        "5 interrupted but resumable, 1 anything else."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with Ponder.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting by path: stages.zero.steps=50. Repeatable."),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="The run folder. [default: runs/<recipe name>]")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name below runs/.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]


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
        _print_json({"recipe": loaded.name, "run": str(folder), "stages": [asdict(stage) for stage in plans]})
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
        _print_json([asdict(check) for check in checks])
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


@app.command()
def ls(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the run folders lie.")] = Path("runs"),
    as_json: JsonFlag = False,
) -> None:
    """List the runs, and the recipes that come with Ponder.

    \b
    Examples:
      ponder ls
      ponder ls /data/runs --json
    """
    runs = [RunFolder(path.parent) for path in sorted(folder.glob("*/manifest.json"))]
    if as_json:
        _print_json({"runs": [_run_json(entry) for entry in runs], "recipes": list(packaged_recipes())})
        return
    table = _table("run", "recipe", "stages")
    for entry in runs:
        try:
            table.add_row(entry.name, entry.manifest().recipe, _summary(_states(entry)))
        except PonderError as error:  # the others are listed all the same
            table.add_row(entry.name, "", str(error))
    Console().print(table if runs else f"no runs in {folder}")
    typer.echo(f"recipes: {', '.join(packaged_recipes()) or 'none'}")


@app.command()
def show(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Show a run: its stages, their last metrics, its results.

    The tables of results are Markdown: a row a model, a column a benchmark, each cell with its 95% interval.

    \b
    Examples:
      ponder show r1-mini
      ponder show runs/short --json
    """
    folder = RunFolder.find(run)
    last = {name: lines[-1] for name in folder.manifest().stages if (lines := folder.metrics(name))}
    if as_json:
        manifest = folder.manifest().model_dump(mode="json")
        _print_json({"run": str(folder.path), **manifest, "last_metrics": last, "evaluations": folder.evaluations()})
        return
    console = Console()
    _print_stages(folder, last, console)
    for name, record in folder.manifest().stages.items():
        rows = [row for row in folder.evaluations() if row["stage"] == name]
        if record.verb == "evaluate" and rows:
            _print_results(name, rows, console)
        elif rows:
            console.print(_evaluations_table(rows))


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="[default: report.html in the run]")] = None,
) -> None:
    """Write one HTML page about a run: curves, tables, rollouts.

    The page is self-contained: it opens anywhere, and nothing in it is fetched.

    \b
    Examples:
      ponder report r1-zero-mini
      ponder report runs/short --out short.html
    """
    folder = RunFolder.find(run)
    from ponder.evaluation.report import write_report

    typer.echo(write_report(folder.path, folder.report_path if out is None else out))


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`mini`, a folder, a .gguf file or a Hub id.")],
    on: Annotated[
        str,
        typer.Option(
            "--on", metavar="NAMES", help="Benchmarks, tasks and one JSONL or Parquet file, with commas between."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The benchmarks' files. [default: read from the Hub]")
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option("--endpoint-model", metavar="NAME", help="What the API at the address MODEL calls it.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable with the API's key.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=1, help="Replies of an API under way at once.")
    ] = 8,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, help="Seconds that one reply of an API may take.")
    ] = 1800.0,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="K", help="Completions a problem. [default: 16; a benchmark's own]"),
    ] = None,
    problems: Annotated[
        int | None, typer.Option("--problems", metavar="N", help="Problems of each. [default: 100; a benchmark's all]")
    ] = None,
    difficulty: Annotated[
        str, typer.Option("--difficulty", metavar="D", help="The tasks' dial: a number, or a range as 1-3.")
    ] = "1",
    language: Annotated[
        str, typer.Option("--language", metavar="CODES", help="Languages of the prompts, separated by commas.")
    ] = "en",
    template: Annotated[str, typer.Option("--template", metavar="NAME", help="Prompt template.")] = "r1-zero",
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", help="Nucleus mass.")] = 0.95,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", help="Longest completion. [default: 512; a benchmark's own]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Every random stream follows from it.")] = 0,
    run_dir: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="The run folder. [default: runs/eval-<model>]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the rows to this file, as JSON.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings only.")] = False,
) -> None:
    """Measure a model, here or behind an API, on benchmarks and tasks.

    Prints pass@1 over K samples with its interval, cons@K and lengths. The samples behind the numbers stay in
    the run folder, with a page for reading them; the same command again costs nothing, and goes on after a stop.
    docs/benchmarks.md lists the benchmarks.

    \b
    Examples:
      ponder eval mini --template mini --on countdown,arithmetic --problems 100
      ponder eval runs/r1-zero-mini/stages/zero/model --template mini --on countdown --json zero.json
      ponder eval ./my-model --on problems.jsonl --template chat --temperature 0 --samples 1
      ponder eval ./my-model --template chat --on aime24,math500,gpqa_diamond
      ponder eval http://127.0.0.1:8000/v1 --endpoint-model mini --on gsm8k --data ./data --samples 1 --max-tokens 512
    """
    names, benchmarks = _exams(on)
    name, endpoints = model, {}
    if model.startswith(("http://", "https://")):
        if endpoint_model is None:
            raise UsageError("MODEL is an address, so give the name of the model there with --endpoint-model")
        name = endpoint_model
        api = {"base_url": model, "model": endpoint_model, "api_key_env": api_key_env}
        endpoints = {name: {**api, "concurrency": concurrency, "timeout_s": timeout}}
    stage = {
        "verb": "evaluate",
        "models": [name],
        "endpoints": endpoints,
        "template": template,
        "tasks": _tasks(names, {"difficulty": _difficulty(difficulty), "languages": language.split(",")}),
        "benchmarks": benchmarks,
        "data_dir": None if data is None else str(data),
        "problems": problems,
        "samples": samples,
        "sampling": {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
    }
    recipe = {"name": f"eval-{_slug(name)}", "seed": seed, "stages": {"eval": stage}}
    rows = RunFolder(run_recipe(recipe, run_dir=run_dir, quiet=quiet).path).evaluations()
    if json_file is not None:
        atomic_write_json(json_file, rows)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`mini`, a folder, a .gguf file or a Hub id.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask.")],
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="Prompt template. [default: the prompt as it is]")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", metavar="N", help="How many replies.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", help="Nucleus mass.")] = 0.95,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", help="Longest reply.")] = 512,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same reply.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model something.

    The answer goes to standard output and the thinking to standard error, so that the answer can be piped.

    \b
    Examples:
      ponder generate mini "What is 3 + 4?" --template mini
      ponder generate runs/r1-zero-mini/stages/zero/model "What is 3 + 4?" --template mini -n 4
    """
    from ponder.api import load
    from ponder.model.parser import split_thinking
    from ponder.model.templates import render

    loaded = load(model)
    text = prompt if template is None else render(template, prompt, loaded.tokenizer)
    replies = loaded.generate([text], samples, temperature, top_p, max_tokens, seed)[0]
    splits = [split_thinking(reply, prompt_tail=text) for reply in replies]
    if as_json:
        _print_json([{"text": reply, **asdict(split)} for reply, split in zip(replies, splits, strict=True)])
        return
    for split in splits:
        typer.secho(split.thinking, dim=True, err=True)
        if split.answer is None:
            typer.echo("ponder: no answer, since the reply is unfinished: raise --max-tokens", err=True)
        else:
            typer.echo(split.answer)


@app.command()
def archive(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="[default: archive/ in the run]")] = None,
) -> None:
    """Turn the rollouts of a run into Parquet files.

    \b
    Examples:
      ponder archive r1-zero-mini
      ponder archive r1-zero-mini --out /data/rollouts
    """
    folder = RunFolder.find(run)
    for part in archive_rollouts(folder.rollouts(), folder.path / "archive" if out is None else out):
        typer.echo(part)


@app.command()
def verify(
    prediction: Annotated[
        str | None, typer.Argument(metavar="PREDICTION", help="A whole reply, or the answer alone.")
    ] = None,
    reference: Annotated[
        str | None, typer.Argument(metavar="REFERENCE", help="A text, or JSON where the verifier needs it.")
    ] = None,
    verifier: Annotated[str | None, typer.Option("--verifier", metavar="NAME", help="[default: math]")] = None,
    bench: Annotated[bool, typer.Option("--bench", help="Judge the hard cases of one or all verifiers.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge one answer, or the verifiers themselves.

    With --bench, prints how often each verifier is wrong on the hard cases that come with it, and each error;
    exit code 3 when a wrong answer was judged right.

    \b
    Examples:
      ponder verify "The answer is \\boxed{1/2}" 0.5
      ponder verify "(B)" B --verifier choice
      ponder verify --bench
    """
    if bench:
        if prediction is not None:
            raise UsageError("--bench judges the verifiers, so leave PREDICTION out")
        _bench((verifier,) if verifier else verifier_names(), as_json)
        return
    if prediction is None or reference is None:
        raise UsageError("give PREDICTION and REFERENCE, or --bench")
    from ponder.evaluation.scoring import judge_prediction

    verdict = judge_prediction(prediction, _reference(reference), verifier or "math")
    if as_json:
        _print_json(asdict(verdict))
    else:
        read = "" if verdict.extracted is None else f" (read as {verdict.extracted!r})"
        typer.echo(f"{'correct' if verdict.correct else 'wrong'}: {verdict.why}{read}")


@app.command()
def score(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="A JSONL file; see docs/verifiers.md.")],
    verifier: Annotated[
        str | None, typer.Option("--verifier", metavar="NAME", help="[default: what each row names]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the rows go. [default: standard output]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings only.")] = False,
) -> None:
    """Judge stored samples again, without the model.

    Rows have `prediction` (a whole reply, or the answer alone) and `reference`, or are samples that `ponder eval`
    left. They come out with `correct`, `extracted`, `why` and `status`. A row that cannot be judged is named by its
    line (exit code 4), and nothing is written.

    \b
    Examples:
      ponder score samples.jsonl --verifier math --out judged.jsonl
      ponder score runs/eval-mini/stages/eval/samples/01-mini-countdown.jsonl > judged.jsonl
    """
    from ponder.evaluation.scoring import score_file

    with Reporter("score", quiet) as reporter:
        scored = score_file(samples, verifier, reporter)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored.rows)
        if out is None:
            typer.echo(text, nl=False)
        else:
            atomic_write(out, text)
        reporter.note(scored.summary)


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="RUN:STAGE, names, folders, .gguf files; ID=MODEL gives one an id."),
    ],
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8000,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="[default: the model's own, or its stage's]")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=1, help="Replies computed at once, per model.")
    ] = 64,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, help="Replies that may wait; beyond, requests get 429.")
    ] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest reply that can be asked for.")
    ] = 4096,
    max_prompt: Annotated[int, typer.Option("--max-prompt", metavar="N", min=1, help="Longest prompt, in tokens.")] = (
        32768
    ),
    max_body: Annotated[int, typer.Option("--max-body", metavar="N", min=1, help="Largest request, in bytes.")] = (
        1_000_000
    ),
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Longest request, in seconds.")] = (
        600.0
    ),
    stop_timeout: Annotated[
        float, typer.Option("--stop-timeout", metavar="S", min=0.1, help="Seconds that replies have to end on SIGTERM.")
    ] = 30.0,
    memory: Annotated[
        float, typer.Option("--memory", metavar="GIB", min=0.001, help="Weights kept in memory, in GiB.")
    ] = 8.0,
) -> None:
    """Serve models by OpenAI's API, thinking apart (docs/api.md).

    Chat and plain completions, streamed or not, of several models at once; concurrent requests share their batch.
    Only this machine can connect, unless --host says otherwise and PONDER_API_KEY holds a key that clients must send.

    \b
    Examples:
      ponder serve mini
      ponder serve r1-mini:r1 base=mini --port 9000
    """
    from ponder.serving.server import api_key, serve_models
    from ponder.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        api_key=api_key(),
        concurrency=concurrency,
        queue=queue,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt,
        max_body_bytes=max_body,
        timeout_s=timeout,
        stop_timeout_s=stop_timeout,
        models_bytes=int(memory * 2**30),
    )
    served = [_served(text) for text in models]
    serve_models(served, settings, template, lambda text: typer.echo(f"ponder: {text}", err=True))


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="RUN:STAGE, `mini`, a folder, a .gguf file, a Hub id, an API's address."),
    ],
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Let the model think first.")] = True,
    budget: Annotated[
        int | None, typer.Option("--thinking-budget", metavar="N", min=1, help="Tokens of thinking, then it answers.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A message ahead of all.")] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="[default: the model's own, or its stage's]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0, help="[default: the model's own, or 0.6]")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", min=1, help="Longest reply. [default: 4096; an API's own]"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed, the same replies.")] = None,
    endpoint_model: Annotated[
        str | None, typer.Option("--endpoint-model", metavar="NAME", help="What the API at the address MODEL calls it.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable with the API's key.")
    ] = None,
) -> None:
    """Talk to a model in the terminal.

    Thinking is shown dimmed, on standard error; answers go to standard output. Ctrl-C stops a reply, Ctrl-D ends the
    chat. In a pipe each line is a turn.

    \b
    Examples:
      ponder chat r1-mini:r1
      echo "Who are you?" | ponder chat mini --no-thinking
      ponder chat http://127.0.0.1:8000/v1 --endpoint-model r1-mini/r1
    """
    from ponder.serving.terminal import Conversation, Partner
    from ponder.serving.terminal import chat as talk

    partner: Partner
    if model.startswith(("http://", "https://")):
        from ponder.serving.terminal import Endpoint

        if endpoint_model is None:
            raise UsageError("MODEL is an address, so give the name of the model there with --endpoint-model")
        key = "" if api_key_env is None else os.environ.get(api_key_env, "")
        if api_key_env is not None and not key:
            raise UsageError(f"--api-key-env: the environment variable {api_key_env} is not set")
        wishes = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        partner = Endpoint(model, endpoint_model, key, wishes, budget)
    else:
        from ponder.serving.generation import Wish
        from ponder.serving.models import ModelSource, ServedModels
        from ponder.serving.terminal import LocalModel

        served = ServedModels({model: ModelSource(_folder(model), template)}).acquire(model)
        wish = Wish(
            max_tokens=max_tokens or 4096,
            temperature=temperature,
            seed=seed,
            splits_thinking=True,
            thinking_budget=budget,
        )
        partner = LocalModel(served, wish)
    talk(Conversation(partner, thinking, system))


@app.command()
def ui(
    runs: Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where the run folders lie.")] = Path("runs"),
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="A further model to chat with, as `serve` takes it. Repeatable."),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8080,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Open the web page: runs while they train, rollouts, tables, chat (docs/ui.md).

    Runs are read from their folders, and never slowed down. Chat offers the embedded models and every checkpoint of the
    runs. The API of `ponder serve` is served beside the page.

    \b
    Examples:
      ponder ui
      ponder ui --runs /data/runs --model other=/models/qwen --no-open
    """
    from ponder.serving.server import api_key
    from ponder.serving.settings import ServeSettings
    from ponder.ui.server import serve_ui

    settings = ServeSettings(host=host, port=port, api_key=api_key())
    serve_ui(
        runs,
        [_served(text) for text in model or ()],
        settings,
        opens,
        lambda url: typer.echo(f"ponder: {url}", err=True),
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="RUN:STAGE, `mini`, a folder, a .gguf file, a Hub id.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder that the export becomes.")],
    format_: Annotated[
        Format, typer.Option("--format", help="For transformers and vLLM, or for llama.cpp.")
    ] = "safetensors",
    type_: Annotated[
        WeightType | None,
        typer.Option("--type", help="How weights are stored. [default: F16 in GGUF, else the source's]"),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="[default: the model's own, or its stage's]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Use DIR though it is in use; what is there is kept.")] = False,
) -> None:
    """Hand a model to transformers or llama.cpp, with a model card (docs/export.md).

    Tokenizer, chat template, sampling settings and licence travel along. The export is read back and its logits are
    compared with the model's before it takes its place; where they differ, nothing is left behind (exit code 1).

    \b
    Examples:
      ponder export r1-mini:r1 --to r1-mini
      ponder export runs/r1-mini/stages/r1/model --to r1-gguf --format gguf --type Q8_0
    """
    from ponder.evaluation.publishing import publish

    facts = publish(model, to, format_, type_, template, force)
    for note in facts.notes:
        typer.echo(f"ponder: {note}", err=True)
    typer.echo(f"{to}: {facts.weights} {facts.format}, logits differ by {facts.difference:.2g} of their deviation")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `ponder export` made.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Of the Hub: OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository one that anybody can see.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Upload an export to the Hugging Face Hub. Asks first.

    Read the model card (README.md) before: it is uploaded as it is.

    \b
    Examples:
      ponder push r1-mini someone/r1-mini
      ponder push r1-mini someone/r1-mini --public --yes
    """
    from ponder.evaluation.publishing import push as upload

    seen = "that anybody can see" if public else "that only its owner can see"
    if not yes:
        typer.confirm(f"Upload {folder} to {repository}, a repository {seen} if it is new?", abort=True)
    typer.echo(upload(folder, repository, private=not public))


def main() -> None:
    """Run the command line of this process; never returns."""
    app(prog_name="ponder")


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


# --- from arguments ----------------------------------------------------------------------------------------------


def _folder(model: str) -> str:
    """A model's folder where it was named RUN:STAGE, else `model`. Raises `UsageError` for a reward model."""
    from ponder.evaluation.origin import find_origin

    return find_origin(model).reference


def _served(text: str) -> str:
    """The same for ID=MODEL."""
    name, equals, model = text.partition("=")
    return f"{name}={_folder(model)}" if equals and model else _folder(text)


def _exams(on: str) -> tuple[list[str], list[str]]:
    """The tasks and files, and the benchmarks, among the names of --on."""
    names = [name for name in (part.strip() for part in on.split(",")) if name]
    if not names:
        raise UsageError("--on must name at least one task or benchmark, such as countdown")
    return [name for name in names if not is_benchmark(name)], [name for name in names if is_benchmark(name)]


def _tasks(names: Iterable[str], settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = {}
    for name in names:
        is_file = Path(name).suffix in (".jsonl", ".parquet")
        key = "file" if is_file else name
        if key in tasks:
            raise UsageError(f"--on names {key!r} twice: give each task, and at most one file, once")
        if not is_file and name.partition(":")[0] not in task_names():
            get_benchmark(name)  # raises, with the nearest name
        tasks[key] = {**settings, "path": name} if is_file else settings
    return tasks


def _reference(text: str) -> Any:
    """JSON where it is an object or a list, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (dict, list)) else text


def _difficulty(text: str) -> int | list[int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None:
        raise UsageError(f"--difficulty {text!r} must be a number, or a range such as 1-3")
    low, high = found.groups()
    return int(low) if high is None else [int(low), int(high)]


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", model).strip("-") or "model"


def _judges_programs(recipe: Recipe) -> bool:
    names = [name for stage in recipe.stages.values() for name in getattr(stage, "benchmarks", ())]
    return any(get_benchmark(name).verifier == "code" for name in names)


# --- to text -----------------------------------------------------------------------------------------------------


def _print_checks(checks: Sequence[Check]) -> None:
    for where, check in summary_rows(checks):
        place = f" ({where})" if where else ""
        typer.echo(f"{check.state:<8} {check.name}{place}: {check.found}")
        if check.state != "ok":
            typer.echo(f"{'':<8} -> {check.advice}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _bench(verifiers: Iterable[str], as_json: bool) -> None:
    """Print the test bench. Raises `RefusedError` when a wrong answer was judged right."""
    from ponder.evaluation.verifier_bench import bench_json, bench_table, misjudged_lines, run_bench

    results = [run_bench(verifier) for verifier in verifiers]
    if as_json:
        _print_json([bench_json(result) for result in results])
    else:
        typer.echo(aligned(bench_table(results)))
        for line in (line for result in results for line in misjudged_lines(result)):
            typer.echo(line)
    paid = [result.verifier for result in results if result.false_positives]
    if paid:
        raise RefusedError(f"wrong answers were judged right by {', '.join(paid)}: see the list, and do not train")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _names(stages: Iterable[str]) -> str:
    return ", ".join(stages) or "nothing"


def _stage_cells(
    name: str, record: StageRecord, state: str, last: dict[str, Any] | None, among: Iterable[StageRecord]
) -> list[str]:
    """One stage of `show`; what it sampled and trained on is in tokens."""
    state = state if record.error is None else f"{state}: {record.error}"
    step = "" if last is None else str(last["step"])
    tokens = (_count(record.sampled_tokens), _count(record.trained_tokens))
    return [name, record.verb, state, step, duration(record.seconds), *hours(record, among), *tokens]


def _plan_on(recipe: Recipe, cluster: str, assume: Iterable[str], as_json: bool) -> None:
    """Print what a recipe needs on named hardware."""
    estimate = estimate_recipe(recipe, parse_cluster(cluster), parse_assumptions(assume))
    if as_json:
        _print_json({"recipe": recipe.name, **estimate_json(estimate)})
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
        parts.append(f"{_count(stage.updates)} updates")
    if stage.max_tokens != 0:
        parts.append(f"at most {_count(stage.max_tokens)} tokens")
    parameters = "-" if stage.parameters is None else f"{stage.parameters / 1e6:.2f} M"
    memory = "-" if stage.memory_bytes is None else f"{stage.memory_bytes / 2**20:,.0f} MiB"
    if stage.starts_from:
        parts.append(f"{parameters} parameters, {memory} besides activations")
    parts.append("time not measured yet" if stage.seconds is None else f"about {duration(stage.seconds)}")
    return f"{stage.name}: " + "; ".join(parts)


def _states(run: RunFolder) -> dict[str, str]:
    """The state of each stage: `killed` where the manifest says running and no process holds the folder."""
    from ponder.ui.live import holder

    states: dict[str, str] = {name: record.state for name, record in run.manifest().stages.items()}
    if "running" in states.values() and holder(run) is None:
        states = {name: "killed" if state == "running" else state for name, state in states.items()}
    return states


def _run_json(run: RunFolder) -> dict[str, Any]:
    """A run's manifest, or why it cannot be read."""
    try:
        return {"run": str(run.path), **run.manifest().model_dump(mode="json")}
    except PonderError as error:  # the others are listed all the same
        return {"run": str(run.path), "error": str(error)}


def _summary(states: Mapping[str, str]) -> str:
    """How many stages are done, and by name those that are not."""
    current = {name: state for name, state in states.items() if "." not in name}  # a dot marks what was set aside
    done = sum(state == "done" for state in current.values())
    return ", ".join(
        [f"{done} of {len(current)} done", *(f"{n} {state}" for n, state in current.items() if state != "done")]
    )


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _print_stages(run: RunFolder, last: dict[str, dict[str, Any]], console: Console) -> None:
    """A table of the stages, then what each logged last; an evaluation's numbers stand in tables of their own."""
    records, states = run.manifest().stages, _states(run)
    every = records.values()
    head = ["stage", "verb", "state", "step", "time", *hours_head(every), "sampled", "trained on"]
    body = [_stage_cells(name, record, states[name], last.get(name), every) for name, record in records.items()]
    console.print(aligned([head, *body]), highlight=False, markup=False, soft_wrap=True)
    for name, record in records.items():
        numbers = {key: value for key, value in last.get(name, {}).items() if "/" in key and value is not None}
        texts = [f"{key} {value:.4g}" for key, value in numbers.items()]
        if record.verb == "sample" and (run.stage_folder(name) / "data" / "card.json").exists():
            texts = _card_texts(read_card(run.stage_folder(name) / "data"))
        if texts and record.verb != "evaluate":
            console.print(f"{name}: {'  '.join(texts)}", highlight=False, markup=False)


def _card_texts(card: dict[str, Any]) -> list[str]:
    """The counts of a data card, and why examples were dropped."""
    counts = [f"{key} {value:,}" for key, value in card.items() if isinstance(value, int) and key != "seed"]
    dropped = [f"{reason} {count:,}" for reason, count in card.get("dropped", {}).items() if count]
    return [*counts, f"dropped: {', '.join(dropped)}"] if dropped else counts


def _print_results(stage: str, rows: list[dict[str, Any]], console: Console) -> None:
    tables = [*result_tables(rows), *extra_tables(rows)]
    for text in (f"## {stage}", settings_text(rows), *map(as_markdown, tables)):
        console.print(f"\n{text}", highlight=False, markup=False, soft_wrap=True)


def _evaluations_table(rows: list[dict[str, Any]]) -> Table:
    """What was measured, and how surely; evaluations.json has the settings of each row."""
    columns = ("model", "benchmark", "metric", "value", "interval", "problems", "k", "temperature")
    table = _table(*columns)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return "-".join(map(_cell, value))
    return "" if value is None else str(value)
