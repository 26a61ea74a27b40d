"""`report.html`: one page about a run, read from the run folder alone, that opens anywhere.

Self-contained: no script, no font, no image, nothing fetched, and a content policy that forbids all of it, since the
page shows text that models wrote. Works on runs that still go on, that failed, or that have gaps in their metrics.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from ponder.evaluation.charts import Line as Curve
from ponder.evaluation.charts import interval_bars, line_chart, number, percent, stacked_bar
from ponder.evaluation.excerpts import comparisons_section, turn_section
from ponder.evaluation.html import Html, element, join, shorten
from ponder.evaluation.metrics import Estimate
from ponder.progress import duration
from ponder.run import Manifest, RunFolder, StageRecord
from ponder.store.evaluations import Row
from ponder.store.files import atomic_write, disk_errors
from ponder.store.metrics import Line
from ponder.store.rollouts import RolloutStore

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content-Security-Policy of the page: its own style, and nothing else."""

_ENDS = 5
"""Steps whose mean stands for the beginning or the end of a training curve."""

_HELD_OUT = "heldout/"
_PASS = "heldout/accuracy/pass@1"

_LENGTHS = {"length/mean": "all", "length/correct": "right", "length/wrong": "wrong"}
_SPEEDS = {"speed/rollout_tokens_per_s": "sampling", "speed/train_tokens_per_s": "training"}
_TIMES = {"time/rollout": "sampling", "time/reward": "rewards", "time/update": "updates"}
_SINGLE = {
    "length/truncated_share": ("Cut at the length limit", "Share of the completions that did not end by themselves."),
    "reflection/words_per_response": (
        "Reflection words",
        "A response: wait, mistake, however, but, retry, error, verify, wrong, evaluate, check, and their Chinese kin.",
    ),
    "policy/entropy": ("Entropy", "Of the policy, in nats a token."),
    "policy/kl": ("KL to the reference", "Estimated, in nats a token."),
    "groups/dead_share": ("Dead groups", "Share of the groups in which all rewards are equal: they teach nothing."),
    "policy/logprob_gap": (
        "Log-probability gap",
        "Largest difference between sampler and trainer on one token, in nats, before the first update of a step.",
    ),
    "grad/norm": ("Gradient norm", "Before clipping."),
    "loss/train": ("Loss", "Cross-entropy, in nats a token."),
}
"""Charts of one line: title and note."""

_KEY_SETTINGS = (
    *("model", "template", "tasks", "rewards", "steps", "prompts_per_step", "group_size", "updates_per_step"),
    *("sampling", "optimizer.name", "optimizer.lr", "algorithm.loss", "algorithm.aggregate"),
    *("algorithm.advantage_scale", "algorithm.kl.beta", "evaluation", "shape", "data", "models", "problems", "samples"),
)
"""Settings shown at once, by the beginning of their path; all others are folded away."""

_EVALUATION_COLUMNS = (
    *("stage", "step", "model", "benchmark", "metric", "value", "interval", "k", "problems"),
    *("temperature", "top_p", "max_tokens", "template", "engine"),
)


@dataclass(frozen=True)
class StageView:
    """What the page knows of one stage."""

    name: str
    record: StageRecord
    settings: Mapping[str, Any]
    """As in the recipe; empty when the stage is no longer in it."""
    lines: Sequence[Line]

    def points(self, metric: str) -> list[tuple[float, float | None]]:
        """(step, value) of a metric wherever it was logged; None where it was not finite."""
        return [(line["step"], line[metric]) for line in self.lines if metric in line]

    def known(self, metric: str) -> list[float]:
        """The finite values of a metric, in order."""
        return [value for _, value in self.points(metric) if value is not None]

    def metrics(self, prefix: str = "") -> list[str]:
        """Names of the metrics that were logged, in the order in which they came up."""
        names = dict.fromkeys(name for line in self.lines for name in line if "/" in name)
        return [name for name in names if name.startswith(prefix)]


def write_report(run_dir: str | Path, out_path: str | Path | None = None) -> Path:
    """Write the page about a run (default: report.html in its folder) and return its path.

    Raises `UsageError` when there is no run, `BrokenInputError` when a file of it is damaged or the disk refuses.
    """
    run = RunFolder.open(run_dir)
    path = run.report_path if out_path is None else Path(out_path)
    # a lone surrogate cannot be written as UTF-8; escaping has made all of them visible already
    atomic_write(path, render_report(run))
    return path


def render_report(run: RunFolder) -> str:
    """The page as text."""
    manifest = run.manifest()
    recipe = _read_recipe(run.recipe_path)
    stages = _stage_views(run, manifest, recipe)
    main = [view for view in stages if view.record.verb == "reinforce"]
    body = join(
        _header(manifest, stages),
        *(_reinforce_section(view, run.rollouts(), alone=len(main) == 1) for view in main),
        *(_other_section(view) for view in stages if view not in main),
        _evaluations_section(run.evaluations()),
        _settings_section(recipe, stages),
        _machine_section(manifest),
    )
    style = importlib.resources.files("ponder.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    head = join(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{manifest.recipe}: a Ponder run"),
        element("style", Html(style)),
    )
    return "<!doctype html>\n" + element("html", element("head", head), element("body", body), lang="en")


# --- reading -----------------------------------------------------------------------------------------------------


def _read_recipe(path: Path) -> dict[str, Any]:
    """The recipe as plain values: a page about an old run must open although settings have changed since."""
    if not path.exists():
        return {}
    with disk_errors(path, "read"):
        recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return recipe


def _stage_views(run: RunFolder, manifest: Manifest, recipe: Mapping[str, Any]) -> list[StageView]:
    by_stage: dict[str, list[Line]] = {}
    for line in run.metrics():
        by_stage.setdefault(line["stage"], []).append(line)
    return [
        StageView(name, record, recipe.get("stages", {}).get(name, {}), by_stage.get(name, []))
        for name, record in manifest.stages.items()
        if "." not in name  # set aside
    ]


# --- the top -----------------------------------------------------------------------------------------------------


def _header(manifest: Manifest, stages: Sequence[StageView]) -> Html:
    running = [view for view in stages if view.record.state != "done"]
    return element(
        "header",
        element("p", "Ponder run", class_="eyebrow"),
        element("h1", manifest.recipe),
        *(element("p", _state(view), class_=f"state {view.record.state}") for view in running),
        element("p", "No stage has been started yet.", class_="state") if not stages else None,
    )


def _state(view: StageView) -> str:
    step = f" at step {view.lines[-1]['step']}" if view.lines else ""
    steps = f" of {view.settings['steps']}" if step and "steps" in view.settings else ""
    why = f": {view.record.error}" if view.record.error else ""
    return f"Stage {view.name} is {view.record.state}{step}{steps}{why}"


def _headline(view: StageView) -> Html:
    """Held-out pass@1 from the base to the end, in one sentence, with the intervals drawn."""
    found = _held_out_ends(view)
    if found is None:
        return element("p", "No held-out evaluation has been made yet.", class_="lead")
    (first_step, first), (last_step, last) = found
    several = last_step != first_step
    bars = [(f"step {first_step}", first), (f"step {last_step}", last)][: 1 + several]
    return join(
        element("h2", _verdict(first, last) if several else _single(first), class_="verdict"),
        element("p", _how_measured(view), class_="lead"),
        interval_bars(bars),
    )


def _held_out_ends(view: StageView) -> list[tuple[int, Estimate]] | None:
    """(step, pass@1) of the first and the last evaluation; None when there is none."""
    lines = [line for line in view.lines if line.get(_PASS) is not None]
    if not lines:
        return None
    return [
        (line["step"], Estimate(line[_PASS], line[f"{_PASS}_low"], line[f"{_PASS}_high"]))
        for line in (lines[0], lines[-1])
    ]


def _verdict(first: Estimate, last: Estimate) -> Html:
    ends = join("from ", element("b", percent(first.value)), " to ", element("b", percent(last.value)))
    if last.low > first.high:
        return join("Held-out pass@1 rose ", ends)
    if last.high < first.low:
        return join("Held-out pass@1 fell ", ends)
    return join("Held-out pass@1 went ", ends, ", within the intervals")


def _single(first: Estimate) -> Html:
    return join("Held-out pass@1 is ", element("b", percent(first.value)), " so far")


def _how_measured(view: StageView) -> str:
    evaluation = view.settings.get("evaluation", {})
    sampling = evaluation.get("sampling") or view.settings.get("sampling", {})
    if not evaluation:
        return "95% intervals, clustered over problems."
    return (
        f"{evaluation.get('problems')} problems that are never trained on, {evaluation.get('samples')} samples of each "
        f"at temperature {sampling.get('temperature')}, at most {sampling.get('max_tokens')} tokens; 95% intervals, "
        "clustered over problems."
    )


def _tiles(view: StageView) -> Html:
    tiles = [
        _vote_tile(view),
        _change_tile(view, "length/mean", "Response length", "tokens, on training prompts"),
        _change_tile(view, "reflection/words_per_response", "Reflection words", "a response, on training prompts"),
        _time_tile(view),
    ]
    return element("div", *(tile for tile in tiles if tile is not None), class_="tiles")


def _tile(title: str, value: object, note: str) -> Html:
    return element("div", element("h3", title), element("p", value, class_="value"), element("p", note), class_="tile")


def _vote_tile(view: StageView) -> Html | None:
    name = _vote_metric(view)
    if name is None or not view.known(name) or not view.known(_PASS):
        return None
    vote = view.known(name)[-1]
    k = name.rpartition("@")[2]
    gain = 100 * (vote - view.known(_PASS)[-1])
    return _tile(f"Vote of {k}", percent(vote), f"cons@{k}: {gain:+.0f} points over pass@1")


def _change_tile(view: StageView, metric: str, title: str, unit: str) -> Html | None:
    values = view.known(metric)
    if not values:
        return None
    size = min(_ENDS, max(1, len(values) // 2))
    start, end = fmean(values[:size]), fmean(values[-size:])
    factor = f"; {end / start:.1f} times" if start > 0 else ""
    return _tile(title, f"{number(start)}\u00a0→ {number(end)}", unit + factor)


def _time_tile(view: StageView) -> Html:
    steps = max((line["step"] for line in view.lines), default=0)
    rollouts = steps * view.settings.get("prompts_per_step", 0) * view.settings.get("group_size", 0)
    whole = max((line.get("elapsed", 0.0) for line in view.lines), default=0.0)
    training = max(view.known("time/training"), default=whole)
    note = f"{steps:,} steps, {rollouts:,} rollouts; with evaluations {duration(whole)}"
    return _tile("Training time", duration(training), note)


def _vote_metric(view: StageView) -> str | None:
    return next(iter(view.metrics("heldout/accuracy/cons@")), None)


# --- a reinforce stage -------------------------------------------------------------------------------------------


def _reinforce_section(view: StageView, store: RolloutStore, alone: bool) -> Html:
    title = None if alone else element("p", f"Stage {view.name}", class_="eyebrow")
    if not view.lines:
        return element("section", title, element("p", "No step has been logged yet.", class_="lead"))
    template = view.settings.get("template", "")
    return join(
        element("section", title, _headline(view), _tiles(view), class_="top"),
        _section("Accuracy", _accuracy_charts(view)),
        _section("How long it thinks, and how often it doubts", _response_charts(view), _noisy_note(view)),
        turn_section(view.name, template, store),
        comparisons_section(view.name, template, store),
        _section("Rewards, each apart", _reward_charts(view)),
        _section("The learning signal", _single_charts(view, _LEARNING)),
        _section("Speed", _speed_charts(view), _time_bar(view)),
        _rest_section(view),
        _watchdog_section(view),
    )


_LEARNING = ("policy/entropy", "policy/kl", "groups/dead_share", "policy/logprob_gap", "grad/norm")


def _section(title: str, charts: Iterable[Html | None], note: Html | None = None) -> Html | None:
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    return element("section", element("h2", title), note, element("div", *drawn, class_="charts"))


def _noisy_note(view: StageView) -> Html:
    return element("p", "On training prompts. Faint: single steps; bold: a running mean.", class_="note")


def _accuracy_charts(view: StageView) -> list[Html | None]:
    band = [
        (line["step"], line[f"{_PASS}_low"], line[f"{_PASS}_high"])
        for line in view.lines
        if line.get(f"{_PASS}_low") is not None and line.get(f"{_PASS}_high") is not None
    ]
    curves = [Curve("held-out pass@1", view.points(_PASS), 1, band=band, dots=True)]
    vote = _vote_metric(view)
    if vote is not None:
        curves.append(Curve(f"held-out {vote.rpartition('/')[2]}", view.points(vote), 2, dashed=True))
    curves.append(Curve("training pass@1", view.points("accuracy/pass@1"), 5, noisy=True))
    note = "The band is the 95% interval of held-out pass@1. The vote takes the most frequent answer of all samples."
    by_task = [
        Curve(name.rpartition("/")[2], view.points(name), 1 + index % 5)
        for index, name in enumerate(view.metrics(f"{_PASS}/"))
    ]
    return [
        line_chart("pass@1 and the vote", curves, note, percent, top=1.0, wide=True),
        line_chart("Held-out pass@1 by task", by_task, None, percent, top=1.0, wide=True) if len(by_task) > 1 else None,
    ]


def _response_charts(view: StageView) -> list[Html | None]:
    lengths = [
        Curve(label, view.points(metric), colour, noisy=True)
        for colour, (metric, label) in zip((5, 3, 2), _LENGTHS.items(), strict=True)
    ]
    names = ("length/truncated_share", "reflection/words_per_response")
    return [line_chart("Response length", lengths, "In tokens."), *_single_charts(view, names)]


def _reward_charts(view: StageView) -> list[Html | None]:
    names = sorted(view.metrics("reward/"), key=lambda name: name != "reward/mean")
    titles = {"reward/mean": "Total, weighted"}
    return [
        line_chart(titles.get(name, name.partition("/")[2]), [Curve("", view.points(name), 4, noisy=True)])
        for name in names
    ]


def _single_charts(view: StageView, names: Iterable[str]) -> list[Html | None]:
    charts = []
    for name in names:
        title, note = _SINGLE[name]
        form = percent if name.endswith("_share") else number
        charts.append(line_chart(title, [Curve("", view.points(name), 1, noisy=True)], note, form))
    return charts


def _speed_charts(view: StageView) -> list[Html | None]:
    curves = [
        Curve(label, view.points(metric), colour, noisy=True)
        for colour, (metric, label) in enumerate(_SPEEDS.items(), start=1)
    ]
    return [line_chart("Tokens a second", curves, wide=True)]


def _time_bar(view: StageView) -> Html | None:
    parts = [(label, sum(view.known(metric))) for metric, label in _TIMES.items() if view.known(metric)]
    if not parts:
        return None
    elapsed = max(line.get("elapsed", 0.0) for line in view.lines)
    rest = max(0.0, elapsed - sum(seconds for _, seconds in parts))
    return stacked_bar([*parts, ("evaluation and the rest", rest)], duration)


def _rest_section(view: StageView) -> Html | None:
    """Charts of every metric that has no place above, folded away."""
    shown = {*_SINGLE, *_LENGTHS, *_SPEEDS, *_TIMES, _PASS, f"{_PASS}_low", f"{_PASS}_high", "accuracy/pass@1"}
    shown.add(_vote_metric(view) or "")
    prefixes = ("reward/", "watchdog/", f"{_PASS}/")
    names = [name for name in view.metrics() if name not in shown and not name.startswith(prefixes)]
    charts = [line_chart(name, [Curve("", view.points(name), 5, noisy=True)]) for name in names]
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    return element(
        "section",
        element(
            "details",
            element("summary", f"{len(drawn)} more metrics"),
            element("div", *drawn, class_="charts"),
        ),
    )


# --- alarms, tables ----------------------------------------------------------------------------------------------


def _watchdog_section(view: StageView) -> Html:
    alerts = [
        element("li", element("b", name.partition("/")[2].replace("_", " ")), f": {_when(steps)}")
        for name in view.metrics("watchdog/")
        if (steps := [int(step) for step, value in view.points(name) if value])
    ]
    skipped = [int(step) for step, value in view.points("grad/skipped_updates") if value]
    if skipped:
        alerts.append(element("li", element("b", "updates that were not finite, skipped"), f": {_when(skipped)}"))
    if view.record.error:
        alerts.append(element("li", element("b", "the stage ended with"), f": {view.record.error}"))
    found = element("ul", *alerts) if alerts else element("p", "It had nothing to say.", class_="lead")
    return element("section", element("h2", "Watchdog"), found, class_="watchdog")


def _when(steps: Sequence[int]) -> str:
    """`at step 3`, or `at 12 steps, first 3, last 40`."""
    if len(steps) == 1:
        return f"at step {steps[0]}"
    return f"at {len(steps)} steps, first {steps[0]}, last {steps[-1]}"


def _other_section(view: StageView) -> Html | None:
    """A stage of another verb: its loss and speed, where it logged any."""
    charts = [*_single_charts(view, ("loss/train", "grad/norm")), *_speed_charts(view)]
    if view.record.verb == "evaluate":
        return None  # its numbers are in the table
    return _section(f"Stage {view.name}: {view.record.verb}", charts)


def _evaluations_section(rows: Sequence[Row]) -> Html | None:
    if not rows:
        return None
    filled = [column for column in _EVALUATION_COLUMNS if any(row.get(column) is not None for row in rows)]
    head = element("tr", *(element("th", column.replace("_", "-")) for column in filled))
    body = [element("tr", *(_cell(row, column) for column in filled)) for row in rows]
    table = element("table", element("thead", head), element("tbody", *body))
    note = "95% intervals over problems. evaluations.json says where in the run folder the samples behind a number lie."
    return element(
        "section",
        element("h2", "Evaluations"),
        element("p", note, class_="note"),
        element("div", table, class_="scroll"),
    )


def _cell(row: Row, column: str) -> Html:
    value = row.get(column)
    if column == "interval" and isinstance(value, list):
        return element("td", " to ".join(_figure(row, bound) for bound in value), class_="figure")
    if column == "value" and isinstance(value, float):
        return element("td", element("b", _figure(row, value)), class_="figure")
    if isinstance(value, (int, float)):
        return element("td", f"{value:g}", class_="figure")
    return element("td", "" if value is None else shorten(str(value), 80))


def _figure(row: Row, value: float) -> str:
    is_share = str(row.get("metric", "accuracy/")).startswith("accuracy/") or "share" in row["metric"]
    return f"{100 * value:.1f}%" if is_share else number(value)


def _settings_section(recipe: Mapping[str, Any], stages: Sequence[StageView]) -> Html | None:
    if not recipe:
        return None
    tables = []
    for view in stages:
        flat = [(path, value) for path, value in _flatten(view.settings) if value not in ("", "None", "{}")]
        key = [(path, value) for path, value in flat if _is_key(path)]
        rest = [(path, value) for path, value in flat if not _is_key(path)]
        title = element("h3", f"{view.name}: {view.record.verb}")
        more = element("details", element("summary", f"{len(rest)} more settings"), _pairs(rest)) if rest else None
        tables.append(element("div", title, _pairs(key), more, class_="settings"))
    note = f"seed {recipe.get('seed')}; the whole recipe is recipe.yaml in the run folder."
    return element("section", element("h2", "Settings"), element("p", note, class_="note"), *tables)


def _is_key(path: str) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in _KEY_SETTINGS)


def _flatten(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """(dotted path, value as text) of nested settings; lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, str(value)


def _pairs(pairs: Iterable[tuple[str, object]]) -> Html:
    rows = (element("tr", element("th", name, scope="row"), element("td", value)) for name, value in pairs)
    return element("div", element("table", element("tbody", *rows), class_="pairs"), class_="scroll")


def _machine_section(manifest: Manifest) -> Html:
    stages = [
        (name, f"{record.verb}, {record.state}, {duration(record.seconds)}, {record.threads} threads")
        for name, record in manifest.stages.items()
    ]
    pairs = [*stages, *manifest.machine.items(), *manifest.packages.items()]
    return element(
        "footer",
        element("details", element("summary", "Machine, packages and stages"), _pairs(pairs)),
        element("p", "Made by ", element("code", "ponder report"), " from the run folder alone. Nothing is fetched."),
    )
