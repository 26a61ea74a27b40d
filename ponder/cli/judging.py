"""Commands that judge: a model on benchmarks, one answer, stored samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ponder.cli.app import (
    ApiKeyEnvOption,
    EndpointModelOption,
    JsonFlag,
    TemperatureOption,
    TopPOption,
    app,
    print_json,
)
from ponder.errors import RefusedError, UsageError
from ponder.evaluation.benchmarks import get_benchmark, is_benchmark
from ponder.evaluation.tables import aligned
from ponder.pipeline import run_recipe
from ponder.progress import Reporter
from ponder.run import RunFolder
from ponder.store.files import atomic_write, atomic_write_json
from ponder.tasks import task_names
from ponder.verifiers import verifier_names


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
    endpoint_model: EndpointModelOption = None,
    api_key_env: ApiKeyEnvOption = None,
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
    temperature: TemperatureOption = 0.6,
    top_p: TopPOption = 0.95,
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
        print_json(asdict(verdict))
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


def _difficulty(text: str) -> int | list[int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None:
        raise UsageError(f"--difficulty {text!r} must be a number, or a range such as 1-3")
    low, high = found.groups()
    return int(low) if high is None else [int(low), int(high)]


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", model).strip("-") or "model"


def _reference(text: str) -> Any:
    """JSON where it is an object or a list, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (dict, list)) else text


def _bench(verifiers: Iterable[str], as_json: bool) -> None:
    """Print the test bench. Raises `RefusedError` when a wrong answer was judged right."""
    from ponder.evaluation.verifier_bench import bench_json, bench_table, misjudged_lines, run_bench

    results = [run_bench(verifier) for verifier in verifiers]
    if as_json:
        print_json([bench_json(result) for result in results])
    else:
        typer.echo(aligned(bench_table(results)))
        for line in (line for result in results for line in misjudged_lines(result)):
            typer.echo(line)
    paid = [result.verifier for result in results if result.false_positives]
    if paid:
        raise RefusedError(f"wrong answers were judged right by {', '.join(paid)}: see the list, and do not train")
