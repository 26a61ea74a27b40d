"""README.md of an export: what is known of a model and what is not, from its run's own records.

Every number comes from the run folder: the manifest, the data cards, metrics.jsonl, evaluations.json. Figures of an
evaluation are shown only where it measured these very weights, by the hash in the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ponder.evaluation.costs import hours, hours_head
from ponder.evaluation.origin import Licence, Made, Origin
from ponder.evaluation.tables import as_markdown, extra_tables, result_tables, settings_text
from ponder.model.templates import CHAT, template_text
from ponder.progress import duration
from ponder.recipe import FineTuneStage, OptimizerSettings, ReinforceStage, SampleStage, TaskSettings
from ponder.run import StageRecord
from ponder.store.datasets import read_card
from ponder.store.evaluations import read_evaluations
from ponder.store.metrics import Line, series

if TYPE_CHECKING:
    from ponder.model.export import ExportFacts

SOURCE_CARD = "SOURCE_README.md"
"""What the authors of a model that no run made say of it, as an export carries it."""

_ENDS = 5
"""Lines whose mean stands for the beginning or the end of a noisy curve."""

_CURVES = {
    "reinforce": (
        "heldout/accuracy/pass@1", "heldout/length/mean", "heldout/language/consistency", "reward/mean",
        "accuracy/pass@1", "length/mean", "length/truncated_share", "reflection/words_per_response", "policy/entropy",
        "policy/kl", "groups/dead_share", "policy/logprob_gap", "policy/sampler_kl",
    ),
    "fine_tune": ("loss/train", "loss/heldout", "length/stop_rate", "distill/reverse_kl"),
    "train_reward": ("loss/train", "accuracy/train", "heldout/accuracy/mean", "heldout/calibration/error"),
}  # fmt: skip
"""What stands for a stage of each verb, by metric name (docs/metrics.md)."""


@dataclass(frozen=True)
class Subject:
    """What a card is about, besides the facts of the export."""

    origin: Origin
    licence: Licence
    template: str | None
    """Prompt template, as `ponder.model.templates` knows it; None where nobody knows."""
    family: str
    generation: Mapping[str, Any]
    """The authors' sampling settings."""
    chat_template: str | None = None
    has_source_card: bool = False
    """What its authors say of it comes with the export."""


def card_text(subject: Subject, facts: ExportFacts) -> str:
    """The whole card, as Markdown with the Hub's metadata at its head."""
    made = subject.origin.made
    body = _made_sections(made) if made is not None else [_unknown(subject)]
    sections = [
        f"# {facts.name}",
        _summary(subject, facts),
        _use(subject, facts),
        *body,
        _checked(facts),
        _limits(subject, facts),
        _licence(subject.licence),
    ]
    return f"---\n{_metadata(subject, facts)}\n---\n" + "\n\n".join(section for section in sections if section) + "\n"


# --- the head -------------------------------------------------------------------------------------------------------


def _metadata(subject: Subject, facts: ExportFacts) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        language=_languages(subject.origin.made) or None,
        license=subject.licence.id,
        library_name="transformers" if facts.format == "safetensors" else "gguf",
        pipeline_tag="text-generation",
        tags=["ponder", subject.family],
    )
    return data.to_yaml().strip()


def _languages(made: Made | None) -> list[str]:
    """Of the prompts that the model was trained on."""
    return sorted({language for _, task in _tasks(made) for language in task.languages})


def _summary(subject: Subject, facts: ExportFacts) -> str:
    size = f"{facts.parameters / 1e6:,.2f} million parameters, {subject.family}, up to {facts.context:,} tokens"
    made = subject.origin.made
    if made is None:
        return f"{size}. Exported by Ponder {facts.ponder} from `{subject.origin.reference}`."
    base = made.base()
    start = "from random weights" if base is None else f"from `{base}`"
    return (
        f"{size}. Made by the stage `{made.recipe_stage}` (`{made.record.verb}`) of the recipe "
        f"`{made.manifest.recipe}`, {start}, and exported by Ponder {facts.ponder}."
    )


def _use(subject: Subject, facts: ExportFacts) -> str:
    templated = subject.chat_template is not None
    if facts.format == "gguf":
        code = _block(f"llama-cli -m {facts.file}{' --jinja' if templated else ' -no-cnv'}", "sh")
    else:
        code = _block(_TRANSFORMERS_CHAT if templated else _TRANSFORMERS, "python")
    parts = ["## Use", code]
    if subject.template not in (None, CHAT):
        parts.append("Prompts look like this (the chat template puts the last message into it):")
        parts.append(_block(template_text(str(subject.template)), "text"))
    elif not templated:
        parts.append("The model came without a chat template: how its prompts should look is not known.")
    settings = {name: value for name, value in subject.generation.items() if not name.endswith("_token_id")}
    if settings:
        parts.append("Its sampling settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + ".")
    return "\n\n".join(parts)


_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (auto.from_pretrained(".") for auto in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer("The text to go on with", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0]))"""

_TRANSFORMERS_CHAT = _TRANSFORMERS.replace(
    'tokenizer("The text to go on with", return_tensors="pt")',
    "tokenizer.apply_chat_template(\n"
    '    [{"role": "user", "content": "What is 3 + 4?"}],\n'
    '    add_generation_prompt=True, return_dict=True, return_tensors="pt",\n'
    ")",
)


# --- what the run tells ---------------------------------------------------------------------------------------------


def _made_sections(made: Made) -> list[str]:
    return [_stages(made), _data(made), _decontamination(made), _curves(made), _results(made)]


def _stages(made: Made) -> str:
    used = [made.manifest.stages[name] for name in made.ancestry()]
    head = ["stage", "verb", "started from", "tokens sampled", "tokens trained on", "time", *hours_head(used), "hash"]
    machine, recipe = made.manifest.machine, made.recipe
    packages = ", ".join(f"{name} {version}" for name, version in made.manifest.packages.items())
    return "\n\n".join(
        [
            "## How it was made",
            "The stages that it rests on, in order. A hash stands for all that a result depends on.",
            _table(head, [_stage_row(made, name, used) for name in made.ancestry()]),
            "\n".join(_setting_lines(made)),
            f"Seed {'unknown' if recipe is None else recipe.seed}. Machine: {machine.get('processor', 'unknown')}, "
            f"{machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')} GiB. Versions: {packages}.",
        ]
    )


def _stage_row(made: Made, name: str, among: Sequence[StageRecord]) -> list[str]:
    record = made.manifest.stages[name]
    uses = ", ".join(f"{source} ({used[:8]})" if used != source else source for source, used in record.uses.items())
    return [
        name, record.verb, uses or "-", _count(record.sampled_tokens), _count(record.trained_tokens),
        duration(record.seconds), *hours(record, among), record.hash[:8],
    ]  # fmt: skip


def _setting_lines(made: Made) -> Iterable[str]:
    """The settings that say most of each training stage."""
    for name in made.ancestry():
        stage = None if made.recipe is None else made.recipe.stages.get(name.partition(".")[0])
        if "." in name:
            yield f"- `{name}`: its settings were others than the recipe's now."
        elif isinstance(stage, ReinforceStage):
            rewards = ", ".join(f"{reward} {settings.weight:g}" for reward, settings in stage.rewards.items())
            yield (
                f"- `{name}`: {stage.steps:,} steps of {stage.prompts_per_step} problems x {stage.group_size} samples, "
                f"temperature {stage.sampling.temperature:g}, at most {stage.sampling.max_tokens:,} tokens; rewards "
                f"{rewards}; {stage.algorithm.loss}, KL {stage.algorithm.kl.beta:g}; {_optimizer(stage.optimizer)}."
            )
        elif isinstance(stage, FineTuneStage):
            amount = f"{stage.epochs:g} epochs" if stage.epochs is not None else f"{stage.steps:,} steps"
            yield f"- `{name}`: {amount} of {stage.tokens_per_step:,} tokens a step; {_optimizer(stage.optimizer)}."


def _optimizer(settings: OptimizerSettings) -> str:
    return f"{settings.name}, learning rate {settings.lr:g} ({settings.schedule})"


def _data(made: Made) -> str:
    blocks = []
    for name in made.ancestry():
        folder = made.run.stage_folder(name) / "data"
        if (folder / "card.json").is_file():
            blocks.append(_data_block(name, folder))
    problems = list(dict.fromkeys(_problem_line(made, name, task) for name, task in _tasks(made)))
    if problems:
        blocks.append("Problems that were asked while training, from their train split:\n\n" + "\n".join(problems))
    if not blocks:
        return "## Data\n\nThe run's folder holds no record of the data."
    return "\n\n".join(["## Data", *blocks])


def _data_block(name: str, folder: Path) -> str:
    card = read_card(folder)
    lines = [f"`{name}`: {card.get('kept', 0):,} examples kept of {_asked(card)}."]
    dropped = {reason: count for reason, count in card.get("dropped", {}).items() if count}
    if dropped:
        lines.append(
            "Dropped, by the first rule that they broke: "
            + ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
            + "."
        )
    for key in ("kept by source", "kept by domain", "kept by language"):
        if card.get(key):
            lines.append(f"{key.capitalize()}: " + ", ".join(f"{k} {v:,}" for k, v in card[key].items()) + ".")
    for path in sorted(folder.glob("*.parquet")):
        with open(path, "rb") as file:
            lines.append(f"`{path.name}`: SHA-256 `{hashlib.file_digest(file, 'sha256').hexdigest()}`.")
    return "\n".join(f"- {line}" if i else f"{line}\n" for i, line in enumerate(lines))


def _asked(card: Mapping[str, Any]) -> str:
    read = sum(card.get("read", {}).values())
    parts = [f"{card.get('sampled', 0):,} sampled"] if card.get("sampled") else []
    return " and ".join([*parts, f"{read:,} read"] if read else parts) or "none"


def _problem_line(made: Made, name: str, task: TaskSettings) -> str:
    languages = ", ".join(task.languages)
    line = f"- `{name}`, difficulty {_span(task.difficulty)}, {languages}"
    if task.path is None:
        return f"{line}; generated."
    path = Path(task.path)
    if not path.is_file():
        return f"{line}; from `{task.path}`, whose content can no longer be seen."
    with open(path, "rb") as file:
        return f"{line}; from `{path.name}`, SHA-256 `{hashlib.file_digest(file, 'sha256').hexdigest()}`."


def _span(difficulty: int | tuple[int, int]) -> str:
    return str(difficulty) if isinstance(difficulty, int) else f"{difficulty[0]}-{difficulty[1]}"


def _tasks(made: Made | None) -> Iterable[tuple[str, TaskSettings]]:
    """The sources of problems of the stages that the model rests on."""
    if made is None or made.recipe is None:
        return
    for name in made.ancestry():
        stage = made.recipe.stages.get(name.partition(".")[0])
        if isinstance(stage, ReinforceStage | SampleStage):
            yield from stage.tasks.items()
        elif isinstance(stage, FineTuneStage) and stage.on_policy is not None:
            yield from stage.on_policy.tasks.items()


def _decontamination(made: Made) -> str:
    lines = []
    for name in made.ancestry():
        folder = made.run.stage_folder(name) / "data"
        card = read_card(folder) if (folder / "card.json").is_file() else {}
        found = card.get("decontamination") or {}
        if found.get("ngram"):
            benchmarks = ", ".join(f"{which} {count:,}" for which, count in found.get("benchmarks", {}).items())
            lines.append(
                f"- `{name}`: {found.get('checked', 0):,} examples were searched for word {found['ngram']}-grams of "
                f"benchmark problems ({benchmarks}); {found.get('dropped', 0):,} dropped."
            )
        elif card:
            lines.append(f"- `{name}`: not searched for benchmark problems.")
    text = "\n".join(lines) or "No data set of this model was searched for benchmark problems."
    note = "Only benchmarks of the run's own recipe were searched for; the base model's data were not searched."
    return f"## Decontamination\n\n{text}\n\n{note}"


def _curves(made: Made) -> str:
    blocks = []
    for name in made.ancestry():
        lines = made.run.metrics(name)
        rows = _curve_rows(lines, _CURVES.get(made.manifest.stages[name].verb, ()))
        if rows:
            steps = max(line["step"] for line in lines)
            title = f"`{name}`, {steps:,} steps:"
            blocks.append(f"{title}\n\n{_table(['metric', 'start', 'end'], rows)}")
    if not blocks:
        return "## Curves\n\nThe run's folder holds no metrics of these stages."
    note = (
        f"Held-out figures are the first and the last measurement, with their 95% interval where they have one; the "
        f"others are means of the first and the last {_ENDS} steps. docs/metrics.md of Ponder has the formulas."
    )
    return "\n\n".join(["## Curves", *blocks, note])


def _curve_rows(lines: Sequence[Line], names: Iterable[str]) -> list[list[str]]:
    return [[name, *ends] for name in names if (ends := _ends(lines, name)) is not None]


def _ends(lines: Sequence[Line], name: str) -> tuple[str, str] | None:
    """How a curve begins and ends, as text; None where it was not logged."""
    values = [value for _, value in series(lines, name)]
    if not values:
        return None
    if not name.startswith("heldout/") and len(values) > 2:
        return f"{fmean(values[:_ENDS]):.4g}", f"{fmean(values[-_ENDS:]):.4g}"
    low, high = (dict(series(lines, f"{name}_{end}")) for end in ("low", "high"))
    points = series(lines, name)
    first, last = (
        f"{value:.4g}" + (f" [{low[step]:.3g}, {high[step]:.3g}]" if step in low and step in high else "")
        for step, value in (points[0], points[-1])
    )
    return ("-", last) if len(points) == 1 else (first, last)


def _results(made: Made) -> str:
    shown = {*(name.partition(".")[0] for name in made.ancestry()), made.base()}
    blocks = []
    for name, record in made.manifest.stages.items():
        if record.verb != "evaluate" or record.uses.get(made.recipe_stage) != made.record.hash:
            continue
        rows = [row for row in read_evaluations(made.run.evaluations_path) if row["stage"] == name]
        rows = [row for row in rows if row["model"] in shown]
        if rows:
            tables = map(as_markdown, [*result_tables(rows), *extra_tables(rows)])
            blocks.append("\n\n".join([f"`{name}`: {settings_text(rows)}.", *tables]))
    if not blocks:
        return "## Results\n\nNo evaluation of the run measured these weights."
    return "\n\n".join(["## Results", "Of this model and those that it rests on.", *blocks])


# --- the rest -------------------------------------------------------------------------------------------------------


def _unknown(subject: Subject) -> str:
    lines = [
        "## What is known, and what is not",
        "Weights, tokenizer and settings are those of the source, unchanged but for their format. There is no record "
        "of a run: from what data the model was trained, whether these were searched for benchmark problems, how "
        "training went and what the model can do is not known from any file that Ponder can check.",
    ]
    if subject.has_source_card:
        lines.append(f"What its authors say of it: [{SOURCE_CARD}]({SOURCE_CARD}).")
    return "\n\n".join(lines)


def _checked(facts: ExportFacts) -> str:
    return (
        "## How the export was checked\n\n"
        f"Weights are stored as {facts.weights}. Before it was kept, the export was read back and compared with the "
        f"model on {facts.tokens:,} tokens: all logits differ by {facts.difference:.2g} of their standard deviation "
        f"(root mean square; at most {facts.tolerance:g} is allowed), and texts become the same tokens. `export.json` "
        "holds the SHA-256 of every file."
    )


def _limits(subject: Subject, facts: ExportFacts) -> str:
    lines = [*facts.notes]
    made = subject.origin.made
    if made is not None:
        lines += _run_limits(made)
    lines.append("Replies may be wrong, and thinking that sounds sure is no proof of being right.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _run_limits(made: Made) -> Iterable[str]:
    record = made.record
    if record.state != "done":
        yield f"The stage is not done: its state is {record.state}."
    if made.recipe is None:
        yield "The run's recipe cannot be read, so settings and ancestors are not listed."
        return
    tasks = sorted({name for name, _ in _tasks(made)})
    if tasks:
        yield f"It was trained on problems of {', '.join(tasks)}; nothing is claimed beyond them."
    languages = _languages(made)
    if languages:
        yield f"Languages of its prompts: {', '.join(languages)}."
    if any(made.manifest.stages[name].verb == "reinforce" for name in made.ancestry()):
        yield "Programs and models gave the rewards: what they do not see was not trained for, and may be exploited."
    yield f"One seed ({made.recipe.seed}): the intervals are over problems and say nothing of other seeds."
    alerts = _alerts(made)
    if alerts:
        yield f"The watchdog spoke up: {', '.join(alerts)}."


def _alerts(made: Made) -> list[str]:
    """Rules of the watchdog that were broken, and at how many steps."""
    found = []
    for name in made.ancestry():
        lines = made.run.metrics(name)
        rules = sorted({key for line in lines for key in line if key.startswith("watchdog/")})
        for rule in rules:
            steps = sum(1 for _, value in series(lines, rule) if value)
            if steps:
                found.append(f"{rule.removeprefix('watchdog/')} at {steps} steps of {name}")
    return found


def _licence(licence: Licence) -> str:
    known = "Not known." if licence.id is None else f"`{licence.id}`."
    texts = f" The text: {', '.join(licence.files)}." if licence.files else ""
    return f"## Licence\n\n{known} {licence.why}{texts}"


# --- as Markdown ----------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    grid = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in grid)


def _block(text: str, language: str) -> str:
    """A code block whose fence the text cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
