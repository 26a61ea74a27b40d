"""`report.html`: one page about a run, read from the run folder alone, that opens anywhere.

Self-contained: no script, no font, no image, nothing fetched, and a content policy that forbids all of it, since the
page shows text that models wrote. Works on runs that still go on, that failed, or that have gaps in their metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ponder.errors import BrokenInputError, PonderError
from ponder.evaluation.costs import cost_grid, stage_costs
from ponder.evaluation.drawing import Box, Edge, draw_graph
from ponder.evaluation.html import Html, element, join, page
from ponder.evaluation.results import grid_table, published_section, results_section
from ponder.evaluation.stage_sections import StageView, flatten, pairs_table, stage_section
from ponder.lineage import inputs, references, running_order
from ponder.progress import duration
from ponder.recipe import EvaluateStage, Recipe, SampleStage, Stage
from ponder.run import Manifest, RunFolder, StageRecord
from ponder.store.evaluations import Row
from ponder.store.files import atomic_write, disk_errors
from ponder.store.metrics import Line

_KEY_SETTINGS = (
    *("model", "template", "tasks", "rewards", "steps", "prompts_per_step", "group_size", "updates_per_step"),
    *("sampling", "optimizer.name", "optimizer.lr", "algorithm.loss", "algorithm.aggregate"),
    *("algorithm.advantage_scale", "algorithm.kl.beta", "evaluation", "shape", "data", "models", "problems", "samples"),
)
"""Settings shown at once, by the beginning of their path; all others are folded away."""


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
    body = join(
        _header(manifest, stages),
        *_sections(run, stages),
        _published_section(stages),
        _costs_section(manifest),
        _settings_section(recipe, stages),
        _machine_section(manifest),
    )
    return page(f"{manifest.recipe}: a Ponder run", body)


# --- reading -----------------------------------------------------------------------------------------------------


def _read_recipe(path: Path) -> dict[str, Any]:
    """The recipe as plain values: a page about an old run must open although settings have changed since."""
    if not path.exists():
        return {}
    with disk_errors(path, "read"):
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BrokenInputError(f"{path} is damaged: remove it, or run the recipe again") from error
    if not isinstance(recipe, dict):
        raise BrokenInputError(f"{path} is damaged: remove it, or run the recipe again")
    return recipe


def _stage_views(run: RunFolder, manifest: Manifest, recipe: Mapping[str, Any]) -> list[StageView]:
    """The stages that have been started, in the order in which they were."""
    by_stage: dict[str, list[Line]] = {}
    for line in run.metrics():
        by_stage.setdefault(line["stage"], []).append(line)
    rows: dict[str, list[Row]] = {}
    for row in run.evaluations():
        rows.setdefault(row["stage"], []).append(row)
    return [
        StageView(
            name=name,
            record=record,
            settings=recipe.get("stages", {}).get(name, {}),
            lines=by_stage.get(name, []),
            rows=rows.get(name, []),
            folder=run.stage_folder(name),
        )
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
    steps = f" of {view.settings['steps']}" if step and view.settings.get("steps") else ""
    why = f": {view.record.error}" if view.record.error else ""
    return f"Stage {view.name} is {view.record.state}{step}{steps}{why}"


def _sections(run: RunFolder, stages: Sequence[StageView]) -> list[Html | None]:
    """One training stage is shown at once; of a pipeline first how it hangs together and what came of it."""
    results = [results_section(view, run.path) for view in stages if view.record.verb == "evaluate"]
    others = [view for view in stages if view.record.verb != "evaluate"]
    if len(others) == 1:
        (view,) = others
        title = element("p", f"Stage {view.name}: {view.record.verb}", class_="eyebrow")
        return [None if view.record.verb == "reinforce" else title, stage_section(view, run.rollouts()), *results]
    folded = [_folded_stage(view, stage_section(view, run.rollouts())) for view in others]
    one_by_one = element("section", element("h2", "Stage by stage"), *folded) if folded else None
    return [_lineage_section(run) if stages else None, *results, one_by_one]


def _folded_stage(view: StageView, content: Html | None) -> Html:
    state = f"{view.record.verb}, {view.record.state}, {duration(view.record.seconds)}"
    summary = element("summary", element("b", view.name), " ", element("span", state))
    return element("details", summary, content, class_="stage")


# --- lineage -----------------------------------------------------------------------------------------------------

_FLOWS = {
    "model": "model",
    "models": "model",
    "data": "data",
    "rewards": "reward",
    "on_policy": "model",
    "shape": "model",
}
"""What an edge carries, by the beginning of the setting that names its source."""


def lineage_drawing(run: RunFolder) -> Html | None:
    """Which stage starts from which, as inline SVG; None where the recipe is of another version of Ponder."""
    try:
        recipe = run.recipe()
        order = running_order(recipe)
    except PonderError:
        return None
    records = run.manifest().stages
    boxes = [_box(name, recipe, records.get(name, StageRecord(verb=recipe.stages[name].verb))) for name in order]
    edges = [edge for name in order for edge in _edges(name, recipe)]
    return draw_graph(boxes, edges, "Which stage starts from which")


def _lineage_section(run: RunFolder) -> Html | None:
    drawing = lineage_drawing(run)
    if drawing is None:
        return None
    keys = [
        element("span", element("i", class_=f"swatch {kind}"), kind, class_="key")
        for kind in ("model", "data", "reward")
    ]
    return element(
        "section",
        element("h2", "Who starts from whom"),
        element("p", *keys, class_="legend"),
        element("div", drawing, class_="scroll"),
        class_="lineage",
    )


def _box(name: str, recipe: Recipe, record: StageRecord) -> Box:
    state = record.state if record.state == "waiting" else f"{record.state}, {duration(record.seconds)}"
    lines = [record.verb, *_from_outside(recipe.stages[name], recipe), state]
    return Box(name, lines, record.state)


def _from_outside(stage: Stage, recipe: Recipe) -> list[str]:
    """What flows in that no stage made."""
    if isinstance(stage, EvaluateStage):
        return [f"{len(stage.models)} models"]
    outside = {key: value for key, value in references(stage).items() if value not in recipe.stages}
    models = [value for key, value in outside.items() if not key.startswith("data")]
    data = [value for key, value in outside.items() if key.startswith("data")]
    if isinstance(stage, SampleStage):
        data += stage.sources
    return [f"from {model}" for model in dict.fromkeys(models)] + ([f"data: {', '.join(data)}"] if data else [])


def _edges(name: str, recipe: Recipe) -> list[Edge]:
    """What flows into a stage from others, once each; of the many that an evaluation takes, the last ones only."""
    stage = recipe.stages[name]
    sources = {
        source: _FLOWS[setting.partition(".")[0]]
        for setting, source in references(stage).items()
        if source in recipe.stages
    }
    if isinstance(stage, EvaluateStage):
        trained = [other for other in recipe.stages if not isinstance(recipe.stages[other], EvaluateStage)]
        used = set().union(*(inputs(recipe, other) for other in trained))
        sources = {source: kind for source, kind in sources.items() if source not in used}
    return [Edge(source, name, kind) for source, kind in sources.items()]


# --- the bottom ------------------------------------------------------------------------------------------------------


def _published_section(stages: Sequence[StageView]) -> Html | None:
    return published_section() if any(view.settings.get("published") for view in stages) else None


def _costs_section(manifest: Manifest) -> Html | None:
    costs = stage_costs(manifest.stages)
    if not costs:
        return None
    note = (
        "Wall time over all starts; core-hours and GPU-hours are wall time x what the stage held: the threads and GPU "
        "of the driver, and what each worker and rank reserves."
    )
    return element(
        "section", element("h2", "What it cost"), element("p", note, class_="note"), grid_table(cost_grid(costs))
    )


def _settings_section(recipe: Mapping[str, Any], stages: Sequence[StageView]) -> Html | None:
    if not recipe:
        return None
    tables = []
    for view in stages:
        flat = [(path, value) for path, value in flatten(view.settings) if value not in ("", "None", "{}")]
        key = [(path, value) for path, value in flat if _is_key(path)]
        rest = [(path, value) for path, value in flat if not _is_key(path)]
        title = f"{view.name}: {view.record.verb}"
        more = element("details", element("summary", f"{len(rest)} more settings"), pairs_table(rest)) if rest else None
        if len(stages) > 1:
            summary = element("summary", element("b", title))
            tables.append(element("details", summary, pairs_table(key), more, class_="stage"))
        else:
            tables.append(element("div", element("h3", title), pairs_table(key), more, class_="settings"))
    note = f"seed {recipe.get('seed')}; the whole recipe is recipe.yaml in the run folder."
    return element("section", element("h2", "Settings"), element("p", note, class_="note"), *tables)


def _is_key(path: str) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in _KEY_SETTINGS)


def _machine_section(manifest: Manifest) -> Html:
    stages = [
        (name, f"{record.verb}, {record.state}, {duration(record.seconds)}, {record.threads} threads")
        for name, record in manifest.stages.items()
    ]
    pairs = [*stages, *manifest.machine.items(), *manifest.packages.items()]
    return element(
        "footer",
        element("details", element("summary", "Machine, packages and stages"), pairs_table(pairs)),
        element("p", "Made by ", element("code", "ponder report"), " from the run folder alone. Nothing is fetched."),
    )
