"""Commands on runs: list them, show one, report on it, put its rollouts away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ponder.cli.app import (
    JsonFlag,
    RunArgument,
    app,
    count,
    print_json,
)
from ponder.errors import PonderError
from ponder.evaluation.costs import hours, hours_head
from ponder.evaluation.tables import aligned, as_markdown, extra_tables, result_tables, settings_text
from ponder.pipeline import packaged_recipes
from ponder.progress import duration
from ponder.run import RunFolder, StageRecord
from ponder.store.archive import archive_rollouts
from ponder.store.datasets import read_card


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
        print_json({"runs": [_run_json(entry) for entry in runs], "recipes": list(packaged_recipes())})
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
        print_json({"run": str(folder.path), **manifest, "last_metrics": last, "evaluations": folder.evaluations()})
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


def _stage_cells(
    name: str, record: StageRecord, state: str, last: dict[str, Any] | None, among: Iterable[StageRecord]
) -> list[str]:
    """One stage of `show`; what it sampled and trained on is in tokens."""
    state = state if record.error is None else f"{state}: {record.error}"
    step = "" if last is None else str(last["step"])
    tokens = (count(record.sampled_tokens), count(record.trained_tokens))
    return [name, record.verb, state, step, duration(record.seconds), *hours(record, among), *tokens]


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


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return "-".join(map(_cell, value))
    return "" if value is None else str(value)
