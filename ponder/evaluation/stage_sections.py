"""The report's sections on stages: what each verb has to show, from its metrics, rollouts and data card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ponder.evaluation.charts import Line as Curve
from ponder.evaluation.charts import interval_bars, line_chart, number, percent, stacked_bar
from ponder.evaluation.excerpts import comparisons_section, turn_section
from ponder.evaluation.html import Html, element, join, shorten
from ponder.evaluation.metrics import Estimate
from ponder.evaluation.tables import is_share
from ponder.progress import duration
from ponder.run import StageRecord
from ponder.store.datasets import read_card
from ponder.store.evaluations import Row
from ponder.store.metrics import Line
from ponder.store.rollouts import RolloutStore

_ENDS = 5
"""Steps whose mean stands for the beginning or the end of a training curve."""

_HELD_OUT = "heldout/"
_PASS = f"{_HELD_OUT}accuracy/pass@1"
_CONSISTENCY = "language/consistency"

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
    "policy/logprob_gap_mean": ("Mean log-probability gap", "The same difference, mean over all tokens."),
    "policy/sampler_kl": (
        "KL from sampler to trainer",
        "Estimated before the first update of a step, in nats a token.",
    ),
    "policy/importance_bounded_share": (
        "Bounded importance weights",
        "Share of the tokens whose weight was cut, or that were dropped for it.",
    ),
    "grad/norm": ("Gradient norm", "Before clipping."),
    "loss/train": ("Loss", "On training data."),
    "loss/heldout": ("Held-out loss", "On examples that are not trained on."),
    "distill/reverse_kl": ("Reverse KL to the teacher", "On the student's own samples, in nats a token."),
}
"""Charts of one line: title and note."""


@dataclass(frozen=True)
class StageView:
    """What the page knows of one stage."""

    name: str
    record: StageRecord
    """Of the manifest; one that says `waiting` where the stage has not been started."""
    settings: Mapping[str, Any]
    """As in the recipe; empty when the stage is no longer in it."""
    lines: Sequence[Line]
    rows: Sequence[Row]
    """Of evaluations.json."""
    folder: Path

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


def _reinforce_section(view: StageView, store: RolloutStore) -> Html:
    if not view.lines:
        return element("section", element("p", "No step has been logged yet.", class_="lead"))
    template = view.settings.get("template", "")
    return join(
        element("section", _headline(view), _tiles(view), class_="top"),
        _section("Accuracy", _accuracy_charts(view)),
        _section("How long it thinks, and how often it doubts", _response_charts(view), _noisy_note(view)),
        _section("Which language it thinks in", _language_charts(view)),
        turn_section(view.name, template, store),
        comparisons_section(view.name, template, store),
        _section("Rewards, each apart", _reward_charts(view)),
        _section("The learning signal", _single_charts(view, _LEARNING)),
        _section("Speed", _speed_charts(view), _time_bar(view)),
        _rest_section(view),
        _watchdog_section(view),
    )


_LEARNING = (
    "policy/entropy",
    "policy/kl",
    "groups/dead_share",
    "policy/logprob_gap",
    "policy/logprob_gap_mean",
    "policy/sampler_kl",
    "policy/importance_bounded_share",
    "grad/norm",
)


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


def _language_charts(view: StageView) -> list[Html | None]:
    curves = [
        Curve("held-out", view.points(f"{_HELD_OUT}{_CONSISTENCY}"), 1, dots=True),
        Curve("training", view.points(_CONSISTENCY), 5, noisy=True),
    ]
    note = "Words of the thinking that are in the problem's language, as a share of all its words."
    return [line_chart("Language consistency", curves, note, percent, top=1.0, wide=True)]


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
    """Charts of every metric of a reinforce stage that has no place above."""
    shown = {*_SINGLE, *_LENGTHS, *_SPEEDS, *_TIMES, _PASS, f"{_PASS}_low", f"{_PASS}_high", "accuracy/pass@1"}
    shown |= {_vote_metric(view) or "", _CONSISTENCY, f"{_HELD_OUT}{_CONSISTENCY}"}
    prefixes = ("reward/", "watchdog/", f"{_PASS}/")
    return _folded(view, [name for name in view.metrics() if name not in shown and not name.startswith(prefixes)])


def _folded(view: StageView, names: Iterable[str]) -> Html | None:
    """Charts of any metrics, folded away."""
    drawn = [chart for chart in _plain_charts(view, names) if chart is not None]
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


def _plain_charts(view: StageView, names: Iterable[str]) -> list[Html | None]:
    return [line_chart(name, [Curve("", view.points(name), 5, noisy=True)]) for name in names]


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


# --- the other verbs ---------------------------------------------------------------------------------------------


def stage_section(view: StageView, store: RolloutStore) -> Html | None:
    """What a stage has to show, by its verb; None for `evaluate`, whose numbers stand in tables of their own."""
    match view.record.verb:
        case "reinforce":
            return _reinforce_section(view, store)
        case "sample":
            return join(_card_section(view), _curves_section(view, "Sampling", _of_interest(view)))
        case "train_reward":
            return join(_figures_section(view), _curves_section(view, "Training", _of_interest(view)))
        case "evaluate":
            return None
        case _:
            return _curves_section(view, "Training", _SUPERVISED)


_SUPERVISED = ("loss/train", "loss/heldout", "distill/reverse_kl", "grad/norm")
_BESIDES = ("speed/", "time/", "tokens/", "optimizer/", _HELD_OUT)
"""Beginnings of the metrics that say how a stage ran, or that stand in a table of figures."""


def _of_interest(view: StageView) -> list[str]:
    return [name for name in view.metrics() if not name.startswith(_BESIDES)]


def _curves_section(view: StageView, title: str, names: Sequence[str]) -> Html:
    """The curves of these metrics, the speed, and all others folded away."""
    known = [name for name in names if name in _SINGLE]
    rest = [name for name in view.metrics() if name not in names and name not in _SPEEDS]
    curves = [*_single_charts(view, known), *_plain_charts(view, [name for name in names if name not in _SINGLE])]
    return join(
        _section(title, curves),
        _section("Speed", _speed_charts(view)),
        _folded(view, rest),
    )


def _card_section(view: StageView) -> Html:
    """The data card: what was asked for, kept and dropped, and why."""
    if not (view.folder / "data" / "card.json").exists():
        return element("section", element("p", "No data have been written yet.", class_="lead"))
    card = read_card(view.folder / "data")
    blocks = [(str(n), block) for n, block in card.items() if isinstance(block, Mapping) and block and n != "settings"]
    plain = {name: value for name, value in card.items() if not isinstance(value, Mapping)}
    tables = [("Data card", plain), *blocks] if plain else blocks
    return element(
        "section",
        *(element("div", element("h3", name), _card_table(block), class_="settings") for name, block in tables),
    )


def _card_table(block: Mapping[str, Any]) -> Html:
    return pairs_table((name, shorten(value, 300)) for name, value in flatten(block))


def _figures_section(view: StageView) -> Html | None:
    """Figures that a stage measured of its own result, with their intervals."""
    if not view.rows:
        return None
    return element("section", element("h2", "Held out"), rows_table(view.rows))


# --- tables ------------------------------------------------------------------------------------------------------

_ROW_COLUMNS = (
    *("stage", "step", "model", "benchmark", "metric", "value", "interval", "k", "problems"),
    *("temperature", "top_p", "max_tokens", "template", "engine"),
)


def rows_table(rows: Sequence[Row]) -> Html:
    """Rows of evaluations.json as they are, one number a line."""
    filled = [column for column in _ROW_COLUMNS if any(row.get(column) is not None for row in rows)]
    head = element("tr", *(element("th", column.replace("_", "-")) for column in filled))
    body = [element("tr", *(_cell(row, column) for column in filled)) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


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
    return f"{100 * value:.1f}%" if is_share(str(row.get("metric", "accuracy/"))) else number(value)


def flatten(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """(dotted path, value as text) of nested settings; lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, str(value)


def pairs_table(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values, one below the other."""
    rows = (element("tr", element("th", name, scope="row"), element("td", value)) for name, value in pairs)
    return element("div", element("table", element("tbody", *rows), class_="pairs"), class_="scroll")
