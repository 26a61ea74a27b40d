"""The report: what it says about a run, that hostile text stays text, and that half a run is enough."""

import html.parser
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ponder.errors import BrokenInputError, UsageError
from ponder.evaluation.excerpts import choose_comparisons
from ponder.evaluation.html import POLICY, VOID
from ponder.evaluation.metrics import pass_at_1
from ponder.evaluation.report import write_report
from ponder.progress import Reporter
from ponder.recipe import load_recipe
from ponder.run import RunFolder, StageContext, StageRecord
from ponder.store.rollouts import RolloutRow

HOSTILE = (
    "</pre></section><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;<style>*{display:none}</style>"
    "<a href='javascript:alert(3)'>\x00\x1b[31m\u202edlrow\u2066 <!-- \ud800 ]]> &#x3c;svg onload=alert(4)&#x3e;"
)


def learned_share(step: int, steps: int) -> float:
    """How far a synthetic run has come: an S from 0 to 1."""
    return 1 / (1 + math.exp(-8 * (step / steps - 0.45)))


def training_metrics(rng: random.Random, share: float) -> dict[str, float]:
    accuracy = 0.22 + 0.5 * share + rng.gauss(0, 0.03)
    length = 55 + 70 * share + rng.gauss(0, 4)
    return {
        "reward/mean": accuracy + 0.09,
        "reward/accuracy": accuracy,
        "reward/format": 0.86 + 0.12 * share + rng.gauss(0, 0.01),
        "accuracy/pass@1": accuracy,
        "length/mean": length,
        "length/correct": length * 0.9 if rng.random() > 0.02 else math.nan,
        "length/wrong": length * (1.1 + 0.5 * share),
        "length/truncated_share": max(0.0, 0.01 + 0.05 * share + rng.gauss(0, 0.01)),
        "reflection/words_per_response": 0.7 + 1.6 * share + rng.gauss(0, 0.1),
        "policy/entropy": 0.9 - 0.5 * share + rng.gauss(0, 0.02),
        "policy/kl": 0.0,
        "policy/clip_share": 0.0,
        "policy/logprob_gap": abs(rng.gauss(2e-6, 4e-7)),
        "policy/logprob_gap_mean": abs(rng.gauss(1e-7, 1e-8)),
        "policy/sampler_kl": abs(rng.gauss(1e-13, 1e-14)),
        "policy/importance_bounded_share": 0.0,
        "groups/dead_share": min(1.0, max(0.0, 0.15 + 0.3 * share + rng.gauss(0, 0.05))),
        "grad/norm": 0.4 + rng.random() * 0.2,
        "grad/skipped_updates": 0.0,
        "loss/policy": rng.gauss(0, 0.01),
        "optimizer/lr": 3e-4,
        "speed/rollout_tokens_per_s": 9000 + rng.gauss(0, 500),
        "speed/train_tokens_per_s": 14000 + rng.gauss(0, 700),
        "time/rollout": 2.2,
        "time/reward": 0.1,
        "time/update": 1.6,
        "watchdog/no_variance": 0.0,
    }


def make_rollout(problem: int, sample: int, correct: bool, text: str | None = None, split: str = "test") -> RolloutRow:
    thinking = f"let me try: {problem}+5={problem + 5} no. wait, next: {problem}*2={2 * problem} yes"
    if not correct:
        thinking = f"maybe: {problem}+5={problem + 5} I stop here"
    answer = f"{problem}*2" if correct else f"{problem}+5"
    return RolloutRow(
        problem_id=f"countdown-en-{problem:02d}",
        task="countdown",
        prompt=f"User: Use {problem}, 2, 5 once each with + - * to make {2 * problem}.\nAssistant:",
        sample=sample,
        text=f"<think>{thinking}</think><answer>{answer}</answer>" if text is None else text,
        thinking=thinking if text is None else text,
        answer=answer if text is None else text,
        rewards={"accuracy": float(correct)},
        correct=correct,
        finish_reason="stop",
        length=len(thinking) // 2,
        split=split,  # type: ignore[arg-type]
    )


def make_run(
    folder: Path,
    steps: int = 120,
    last: int | None = None,
    every: int = 10,
    state: str = "done",
    error: str | None = None,
    change: Callable[[int, dict[str, float]], dict[str, float]] = lambda step, metrics: metrics,
    text: str | None = None,
    template: str = "mini",
) -> Path:
    """A run folder as a reinforce stage of `steps` steps leaves it after `last` of them, with made-up numbers."""
    rng = random.Random(0)
    stage: dict[str, Any] = {"verb": "reinforce", "model": "mini", "template": template, "tasks": {"countdown": {}}}
    stage["steps"] = steps
    stage |= {"evaluation": {"every": every, "problems": 20, "samples": 16}, "rewards": {"accuracy": 1, "format": 0.1}}
    recipe = load_recipe({"name": "r1-zero-mini", "stages": {"zero": stage}})
    run = RunFolder(folder)
    last = steps if last is None else last
    with run.lock():
        run.prepare(recipe)
        context = StageContext.open(recipe, "zero", run, Reporter("zero", quiet=True))
        for step in range(last + 1):
            share = learned_share(step, steps)
            if every and (step % every == 0 or step == steps):
                evaluate(context, step, share, rng, text)
            if step:
                context.metrics.write(step, change(step, training_metrics(rng, share)))
        context.close()
        record = StageRecord(verb="reinforce", state=state, seconds=540.0, threads=2, error=error)  # type: ignore[arg-type]
        run.set_record("zero", record)
    return folder


def evaluate(context: StageContext, step: int, share: float, rng: random.Random, text: str | None) -> None:
    rates = [0.0 if p == 19 else min(1.0, max(0.0, rng.gauss(0.24 + 0.55 * share, 0.2))) for p in range(20)]
    table = [[rng.random() < rate for _ in range(16)] for rate in rates]
    estimate = pass_at_1(table)
    metrics = {
        "heldout/accuracy/pass@1": estimate.value,
        "heldout/accuracy/pass@1_low": estimate.low,
        "heldout/accuracy/pass@1_high": estimate.high,
        "heldout/accuracy/cons@16": min(1.0, estimate.value + 0.08),
        "heldout/accuracy/pass@1/countdown": estimate.value,
        "heldout/accuracy/pass@1/arithmetic": max(0.0, estimate.value - 0.1),
        "heldout/length/mean": 60 + 70 * share,
    }
    context.metrics.write(step, metrics)
    rows = [make_rollout(p, s, c, text) for p, row in enumerate(table) for s, c in enumerate(row)]
    context.rollouts.add(step, rows)


class Reader(html.parser.HTMLParser):
    """What a browser would make of the page: its elements, its visible text, its balance."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(folder: Path, out: Path | None = None) -> tuple[str, Reader]:
    path = write_report(folder, out)
    page = path.read_text(encoding="utf-8")
    return page, Reader(page)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "r1-zero-mini", steps=60)


# --- what it says --------------------------------------------------------------------------------------------------


def test_headline_tells_base_and_end_with_their_intervals(finished: Path) -> None:
    page, reader = read(finished)
    lines = [line for line in RunFolder.open(finished).metrics() if "heldout/accuracy/pass@1" in line]
    first, last = (100 * line["heldout/accuracy/pass@1"] for line in (lines[0], lines[-1]))
    assert f"Held-out pass@1 rose from {first:.0f}% to {last:.0f}%" in reader.text.replace("  ", " ")
    assert "20 problems that are never trained on, 16 samples of each at temperature 1.0" in reader.text
    low, high = (100 * lines[-1][f"heldout/accuracy/pass@1_{end}"] for end in ("low", "high"))
    assert f"({low:.0f}% to {high:.0f}%)" in reader.text
    assert 'class="whisker"' in page


def test_every_promised_curve_is_there(finished: Path) -> None:
    page, reader = read(finished)
    titles = re.findall(r"<h3>([^<]*)</h3>", page)
    for title in (
        *("pass@1 and the vote", "Response length", "Cut at the length limit", "Reflection words", "Entropy"),
        *("KL to the reference", "Total, weighted", "accuracy", "format", "Dead groups", "Log-probability gap"),
        "Tokens a second",
    ):
        assert title in titles
    for label in ("held-out pass@1", "held-out cons@16", "all", "right", "wrong", "sampling", "training"):
        assert label in reader.text
    assert 'class="band c1"' in page


def test_it_is_one_small_file_that_fetches_nothing(finished: Path) -> None:
    page, reader = read(finished)
    assert len(page.encode()) < 3_000_000
    assert POLICY.startswith("default-src 'none'")
    assert reader.tags.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form", "a"})
    assert reader.attributes.isdisjoint({"src", "href", "srcset", "action"})
    assert not any(name.startswith("on") for name in reader.attributes)
    assert "url(" not in page
    assert "@import" not in page


def test_the_same_run_gives_the_same_page(finished: Path, tmp_path: Path) -> None:
    first, _ = read(finished, tmp_path / "a.html")
    second, _ = read(finished, tmp_path / "b.html")
    assert first == second


def test_it_finds_the_rollout_that_turns_round(finished: Path) -> None:
    page, reader = read(finished)
    assert "Found by search among" in reader.text
    assert "after the reflection word it leaves one way for another" in reader.text
    assert '<mark class="turning">wait</mark>' in page


def test_what_the_template_says_is_left_out(tmp_path: Path) -> None:
    """Known templates by their words, others by the lines that all prompts share."""
    known, other = (
        make_run(tmp_path / "known", steps=2),
        make_run(tmp_path / "other", steps=2, template="prompts/own.txt"),
    )
    for run in (known, other):
        page, _ = read(run)
        problems = re.findall(r'<pre class="problem">([^<]*)</pre>', page)
        assert len(problems) == 4
        assert all("Assistant:" not in problem for problem in problems)
    assert all(problem.startswith("Use ") for problem in re.findall(r'"problem">([^<]*)<', read(known)[0]))


def test_it_says_plainly_when_none_turns_round(tmp_path: Path) -> None:
    _, reader = read(make_run(tmp_path / "run", steps=10, text="3"))
    assert "There is none among 640 stored rollouts" in reader.text


def test_a_fall_and_a_standstill_are_called_so(tmp_path: Path) -> None:
    def sentence(folder: str, base: tuple[float, float, float], end: tuple[float, float, float]) -> str:
        run = make_run(tmp_path / folder, steps=1, every=0)
        stages = [{"stage": "zero", "step": step, "time": 0, "elapsed": 0} for step in (0, 1)]
        for line, (value, low, high) in zip(stages, (base, end), strict=True):
            line |= {"heldout/accuracy/pass@1": value}
            line |= {"heldout/accuracy/pass@1_low": low, "heldout/accuracy/pass@1_high": high}
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stages))
        return read(run)[1].text

    assert "Held-out pass@1 rose from 30% to 60%" in sentence("up", (0.3, 0.2, 0.4), (0.6, 0.5, 0.7))
    assert "Held-out pass@1 fell from 60% to 30%" in sentence("down", (0.6, 0.5, 0.7), (0.3, 0.2, 0.4))
    assert "from 30% to 40% , within the intervals" in sentence("same", (0.3, 0.2, 0.4), (0.4, 0.3, 0.5))


def test_watchdog_and_errors_are_told(tmp_path: Path) -> None:
    def change(step: int, metrics: dict[str, float]) -> dict[str, float]:
        return metrics | {"watchdog/no_variance": float(step >= 7), "grad/skipped_updates": float(step == 3)}

    run = make_run(tmp_path / "run", steps=20, last=10, state="failed", error="stopped at step 10: <b>", change=change)
    _, reader = read(run)
    assert "no variance : at 4 steps, first 7, last 10" in reader.text
    assert "updates that were not finite, skipped : at step 3" in reader.text
    assert "Stage zero is failed at step 10 of 20: stopped at step 10: <b>" in reader.text


def test_a_healthy_watchdog_is_silent(finished: Path) -> None:
    assert "It had nothing to say." in read(finished)[1].text


# --- a whole pipeline ----------------------------------------------------------------------------------------------

MODELS = ["mini", "zero", "dev1", "r1"]
PIPELINE: dict[str, Any] = {
    "zero": {"verb": "reinforce", "tasks": {"countdown": {}}, "steps": 20, "evaluation": {"every": 10}},
    "cold_data": {
        "verb": "sample",
        "model": "zero",
        "tasks": {"countdown": {}},
        "sources": {"file:cold": {"path": "c"}},
    },
    "dev1": {"verb": "fine_tune", "model": "mini", "data": ["cold_data"], "epochs": 2},
    "helpful": {"verb": "train_reward", "data": ["mini-world"], "rows": 100},
    "r1": {
        "verb": "reinforce",
        "model": "dev1",
        "tasks": {"countdown": {}},
        "rewards": {"accuracy": 1, "help": "helpful"},
    },
    "table": {"verb": "evaluate", "models": MODELS, "tasks": {"countdown": {}, "general": {}}, "published": True},
}
CARD = {"problems": 320, "dropped": {"wrong": 700, "two <b>languages</b>": 12}, "kept": 568}


def result_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of four models on two benchmarks, better by the row, with the samples behind pass@1."""
    rows = []
    for index, model in enumerate(MODELS):
        for benchmark in ("countdown", "general"):
            samples = folder / f"{model}-{benchmark}.jsonl"
            correct = [{"problem_id": f"p{p}", "correct": p <= 4 * index + s} for p in range(20) for s in range(4)]
            samples.write_text("".join(json.dumps(sample) + "\n" for sample in correct))
            row = {"stage": "table", "model": model, "benchmark": benchmark, "k": 4, "problems": 20, "temperature": 0.6}
            row |= {"template": "chat" if model == "r1" else "mini", "samples": samples.name}
            curve = {f"accuracy/pass@{2**i}": min(1.0, 0.2 + 0.15 * index + 0.1 * i) for i in range(3)}
            metrics = {**curve, "accuracy/cons@4": 0.5, "language/consistency": 0.9875, "length/stop_rate": 1.0}
            for metric, value in metrics.items():
                rows.append(
                    {**row, "metric": metric, "value": value, "interval": [value - 0.04, min(1.0, value + 0.04)]}
                )
            rows.append({**row, "metric": "length/mean", "value": 81.5 + index, "interval": [80.0, 90.0]})
    return rows


def make_pipeline(folder: Path, done: int = len(PIPELINE)) -> Path:
    """A run folder with every verb, of which the first `done` stages have been carried out, with made-up numbers."""
    rng = random.Random(1)
    recipe = load_recipe({"name": "r1-mini", "stages": PIPELINE})
    run = RunFolder(folder)
    with run.lock():
        run.prepare(recipe)
        for name in list(PIPELINE)[:done]:
            verb = PIPELINE[name]["verb"]
            context = StageContext.open(recipe, name, run, Reporter(name, quiet=True))
            for step in range(1, 21):
                share = learned_share(step, 20)
                if verb == "reinforce":
                    if step % 10 == 0:
                        evaluate(context, step, share, rng, None)
                    metrics = training_metrics(rng, share) | {"language/consistency": 0.8 + 0.1 * share}
                    context.metrics.write(step, metrics | ({"reward/help": share} if name == "r1" else {}))
                elif verb in ("fine_tune", "train_reward"):
                    known = {"loss/train": 3.0 / step, "accuracy/pairs": share, "speed/train_tokens_per_s": 100.0}
                    context.metrics.write(step, known)
            if verb == "sample":
                (context.folder / "data").mkdir()
                (context.folder / "data" / "card.json").write_text(json.dumps(CARD))
            if verb == "evaluate":
                (run.path / "evaluations.json").write_text(json.dumps(result_rows(folder)))
            context.close()
            run.set_record(name, StageRecord(verb=verb, state="done", seconds=90.0, threads=2, sampled_tokens=5_000))
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("runs") / "r1-mini")


@pytest.fixture(scope="module")
def whole(pipeline: Path) -> tuple[str, Reader]:
    """The page of the pipeline."""
    return read(pipeline)


def tables_of(page: str) -> list[list[list[str]]]:
    """The cells of each table, as text."""
    cells = [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        for table in re.findall(r"<table[^>]*>(.*?)</table>", page)
    ]
    return [[[re.sub("<[^>]*>", "", cell) for cell in row] for row in table] for table in cells]


def test_the_tables_of_an_evaluation(whole: tuple[str, Reader]) -> None:
    page, reader = whole
    tables = tables_of(page)
    assert tables[0] == [
        ["model", "countdown", "general"],
        ["mini", *["20.0 16.0 to 24.0"] * 2],
        ["zero", *["35.0 31.0 to 39.0"] * 2],
        ["dev1", *["50.0 46.0 to 54.0"] * 2],
        ["r1", *["65.0 61.0 to 69.0"] * 2],
    ]
    for title in ("pass@1 (%)", "cons@4, the vote of 4 (%)", "language consistency (%)", "stop rate (%)"):
        assert f">{title}</h3>" in page
    assert "mean length, tokens</h3>" in page
    assert "template mini for mini, zero, dev1; template chat for r1" in reader.text
    assert page.count('class="scroll') == page.count("<table") + 1  # each in its own box, and the drawing, too


def test_pass_at_k_has_a_logarithmic_axis(whole: tuple[str, Reader]) -> None:
    page, _ = whole
    figure = page[page.index("pass@k on countdown") :]
    assert re.findall(r"<b>k (\d+)</b>", figure[: figure.index("</figure>")]) == ["1", "2", "4"]
    assert "M0 " in figure
    assert "L50 " in figure  # k = 2 lies in the middle of 1 and 4


def test_models_are_compared_problem_by_problem(whole: tuple[str, Reader], tmp_path: Path) -> None:
    page, _ = whole
    (table,) = (table for table in tables_of(page) if table[1][0] == "zero minus mini")
    assert [row[0] for row in table[1:]] == ["zero minus mini", "dev1 minus zero", "r1 minus dev1"]
    assert table[1][1].startswith("+20.0 ")  # four problems of twenty more
    alone = make_pipeline(tmp_path / "run")
    for file in alone.glob("*.jsonl"):
        file.write_text("torn") if file.name != "metrics.jsonl" else None
    (table,) = (table for table in tables_of(read(alone)[0]) if table[1][0] == "zero minus mini")
    assert table[1][1:] == ["-", "-"]


def test_published_figures_stand_apart_and_only_when_asked_for(whole: tuple[str, Reader], finished: Path) -> None:
    page, _ = whole
    block = page[page.index('class="published"') :]
    block = block[: block.index("</section>")]
    assert "Published, not measured here" in block
    assert all("R1-Distill-Qwen-7B" not in str(table) for table in tables_of(page.replace(block, "")))
    row = ["R1-Distill-Qwen-7B", "55.5", "83.3", "92.8", "49.1", "37.6", "1189", "[v1] Table 5"]
    assert any(row in table for table in tables_of(block))
    assert "Published" not in read(finished)[1].text


def test_the_lineage_is_drawn_with_what_flows_where(whole: tuple[str, Reader], tmp_path: Path) -> None:
    page, _ = whole
    graph = page[page.index('class="graph"') : page.index("</svg>")]
    assert re.findall(r'class="edge (\w+)"', graph) == ["model", "data", "model", "reward", "model"]
    boxes = [re.findall(r"<text[^>]*>([^<]*)</text>", box) for box in graph.split("<g ")[1:]]
    assert {box[0]: box[1:] for box in boxes} == {
        "zero": ["reinforce", "from mini", "done, 1 min 30 s"],
        "cold_data": ["sample", "data: file:cold", "done, 1 min 30 s"],
        "dev1": ["fine_tune", "from mini", "done, 1 min 30 s"],
        "helpful": ["train_reward", "from mini", "data: mini-world", "done, 1 min 30 s"],
        "r1": ["reinforce", "done, 1 min 30 s"],
        "table": ["evaluate", "4 models", "done, 1 min 30 s"],
    }
    page, _ = read(make_pipeline(tmp_path / "half", done=2))
    assert page.count("waiting</text>") == 4


def test_two_evaluations_do_not_hide_each_others_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIPELINE, "again", {**PIPELINE["table"], "models": ["r1"], "published": False})
    page, reader = read(make_pipeline(tmp_path / "run", done=6))
    graph = page[page.index('class="graph"') : page.index("</svg>")]
    assert re.findall(r'class="edge (\w+)"', graph) == ["model", "data", "model", "reward", "model", "model"]
    assert "Results: table" in reader.text


def test_each_verb_has_a_section(whole: tuple[str, Reader]) -> None:
    page, _ = whole
    for name, content in {
        "zero": "Which language it thinks in",
        "cold_data": "two &lt;b&gt;languages&lt;/b&gt;",
        "dev1": "<h3>Loss</h3>",
        "helpful": "<h3>accuracy/pairs</h3>",
        "r1": "<h3>help</h3>",
    }.items():
        section = page[page.index(f'<details class="stage"><summary><b>{name}</b>') :]
        assert content in section.split('<details class="stage">')[1], name
    assert "<h3>help</h3>" not in page.split("<summary><b>r1</b>")[0]


def test_the_page_says_what_each_stage_cost(whole: tuple[str, Reader]) -> None:
    tables = tables_of(whole[0])
    (table,) = (table for table in tables if table[0][:2] == ["stage", "wall time"])
    assert table[1] == ["zero", "1 min 30 s", "5,000", "-", "0.05"]
    assert table[-1] == ["in all", "9 min 00 s", "30,000", "-", "0.30"]


def test_a_recipe_of_another_version_has_a_page_without_a_drawing(tmp_path: Path) -> None:
    run = make_pipeline(tmp_path / "run")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("epochs:", "rounds:"))
    page, reader = read(run)
    assert 'class="graph"' not in page
    assert "pass@1 (%)" in reader.text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"3", b""])
def test_a_damaged_recipe_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    run = make_pipeline(tmp_path / "run")
    (run / "recipe.yaml").write_bytes(content)
    with pytest.raises(BrokenInputError, match=r"recipe\.yaml is damaged"):
        write_report(run)


# --- hostile text --------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    def change(step: int, metrics: dict[str, float]) -> dict[str, float]:
        return metrics | {f"x/{HOSTILE}".replace("\ud800", ""): 1.0}

    text = HOSTILE.replace("\ud800", "")  # neither SQLite nor JSON on disk can hold half a surrogate pair
    run = make_run(tmp_path / "run", steps=4, every=2, text=text, change=change, error=text)
    page, reader = read(run)
    assert reader.tags.isdisjoint({"script", "img", "a"})
    assert reader.attributes.isdisjoint({"onerror", "onload", "href", "src"})
    assert "<script>alert(1)</script>" in reader.text  # shown, not run
    assert page.count("<style>") == 1
    assert "[U+202E]dlrow[U+2066]" in reader.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page)


def test_a_flood_of_text_is_cut(tmp_path: Path) -> None:
    page, reader = read(make_run(tmp_path / "run", steps=2, every=1, text="wait <" * 1_000))
    assert len(page.encode()) < 500_000
    assert "more characters]" in reader.text


# --- half a run ----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_called_so(tmp_path: Path) -> None:
    _, reader = read(make_run(tmp_path / "run", steps=120, last=12, state="running"))
    assert "Stage zero is running at step 12 of 120" in reader.text


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    _, reader = read(make_run(tmp_path / "run", steps=5, last=-1, state="running"))
    assert "No step has been logged yet." in reader.text


def test_a_run_without_stages_has_a_page(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    stage = {"verb": "reinforce", "tasks": {"countdown": {}}}
    with run.lock():
        run.prepare(load_recipe({"name": "r", "stages": {"zero": stage}}))
    assert "No stage has been started yet." in read(run.path)[1].text


def test_one_evaluation_is_no_comparison(tmp_path: Path) -> None:
    _, reader = read(make_run(tmp_path / "run", steps=20, last=5))
    assert "so far" in reader.text
    assert "rose" not in reader.text


def test_without_evaluations_and_rollouts(tmp_path: Path) -> None:
    _, reader = read(make_run(tmp_path / "run", steps=5, every=0))
    assert "No held-out evaluation has been made yet." in reader.text
    assert "Response length" in reader.text


def test_gaps_leave_gaps(tmp_path: Path) -> None:
    def change(step: int, metrics: dict[str, float]) -> dict[str, float]:
        return metrics | ({"policy/entropy": math.nan} if step in (3, 4) else {})

    page, _ = read(make_run(tmp_path / "run", steps=10, change=change))
    figure = page[page.index("<h3>Entropy") :]
    assert figure[figure.index("<path") : figure.index("</svg>")].count("M") == 2


def test_metrics_that_are_never_finite_draw_nothing(tmp_path: Path) -> None:
    def change(step: int, metrics: dict[str, float]) -> dict[str, float]:
        return dict.fromkeys(metrics, math.nan)

    page, _ = read(make_run(tmp_path / "run", steps=3, every=0, change=change))
    assert "<svg" not in page


def test_a_fine_tuned_stage_shows_its_loss(tmp_path: Path) -> None:
    stage: dict[str, Any] = {"verb": "fine_tune", "model": "mini", "data": ["mini-world"], "steps": 3}
    recipe = load_recipe({"name": "base", "stages": {"base": stage}})
    run = RunFolder(tmp_path / "run")
    with run.lock():
        run.prepare(recipe)
        context = StageContext.open(recipe, "base", run, Reporter("base", quiet=True))
        for step in (1, 2, 3):
            context.metrics.write(step, {"loss/train": 3.0 / step, "speed/train_tokens_per_s": 100.0})
        context.close()
        run.set_record("base", StageRecord(verb="fine_tune", state="done"))
    page, reader = read(run.path)
    assert "<h3>Loss</h3>" in page
    assert "Stage base: fine_tune" in reader.text


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)


# --- which problems are shown --------------------------------------------------------------------------------------


def rows(rates: Sequence[int]) -> list[RolloutRow]:
    """Four samples of each problem, so many of them right."""
    return [make_rollout(p, s, s < right) for p, right in enumerate(rates) for s in range(4)]


def chosen(before: Sequence[int], after: Sequence[int]) -> list[int]:
    found = choose_comparisons(rows(before), rows(after))
    return [int(comparison.after[0].problem_id[-2:]) for comparison in found]


def test_one_learned_one_next_one_failed() -> None:
    assert chosen([4, 0, 1, 0, 2], [4, 1, 4, 3, 0]) == [2, 0, 4]


def test_kinds_that_do_not_exist_are_stood_in_for() -> None:
    assert chosen([4, 4, 4, 4], [4, 4, 4, 4]) == [0, 1, 2]
    assert chosen([0, 0, 0], [0, 0, 0]) == [1, 2, 0]
    assert chosen([0], [4]) == [0]
    assert chosen([], []) == []


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    before, after = rows([4, 0, 1, 0, 2]), rows([4, 1, 4, 3, 0])
    straight = [c.after[0].problem_id for c in choose_comparisons(before, after)]
    assert [c.after[0].problem_id for c in choose_comparisons(before[::-1], after[::-1])] == straight
