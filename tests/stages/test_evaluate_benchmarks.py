"""The `evaluate` stage on benchmarks and endpoints: rows, departures, resume after a kill, the page of the items."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ponder.curation.decontaminate import Decontamination, benchmarks
from ponder.errors import BrokenInputError, InterruptedRunError, UsageError
from ponder.evaluation.items import item_page
from ponder.pipeline import run_recipe, stage_hashes
from ponder.plan import plan_recipe
from ponder.recipe import load_recipe
from ponder.rollout import endpoint
from ponder.run import RunFolder

Serve = Callable[[Callable[[dict[str, Any]], tuple[int, str] | None]], str]

QUESTIONS = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return folder


def recipe(url: str, data: Path, **more: Any) -> dict[str, Any]:
    stage = {
        "verb": "evaluate",
        "models": ["sage"],
        "endpoints": {"sage": {"base_url": url, "model": "sage-1", "retries": 1, "timeout_s": 60, "concurrency": 2}},
        "benchmarks": ["math500"],
        "data_dir": str(data),
        "samples": 2,
        **more,
    }
    return {"name": "e", "judging": {"workers": 0}, "stages": {"table": stage}}


def sage(request: Mapping[str, Any]) -> tuple[int, str]:
    """Right where both numbers are even; thinks the wrong answer first."""
    number = int(request["messages"][0]["content"].split()[2])
    said = 2 * number if number % 2 == 0 else -1
    message = {"content": f"So \\boxed{{{said}}}{HOSTILE}", "reasoning_content": f"{HOSTILE} \\boxed{{77}}"}
    usage = {"prompt_tokens": 11, "completion_tokens": 20 + number}
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in RunFolder(folder).evaluations()}


def test_rows_say_what_the_endpoint_did_and_where_it_departs(
    chat_server: Serve, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe(chat_server(sage), data), run_dir=tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    row = rows["accuracy/pass@1"]
    assert (row["value"], row["k"], row["problems"], row["engine"]) == (0.5, 2, 4, "endpoint")
    assert (row["endpoint_model"], row["title"], row["verifier"]) == ("sage-1", "MATH-500", "math")
    assert (row["max_tokens"], row["temperature"], row["top_p"]) == (32_768, 0.6, 0.95)
    assert row["departures"] == ["problems 4 instead of 500", "k 2 instead of 16"]
    assert rows["accuracy/cons@2"]["value"] == 0.5
    assert rows["length/mean"]["value"] == 20 + (0 + 1 + 2 + 3) / 4
    (line,) = RunFolder(tmp_path / "run").metrics("table")
    assert (line["tokens/prompts"], line["tokens/sampled"]) == (8 * 11, 2 * (80 + 6))
    printed = capsys.readouterr().err
    assert "math500*" in printed
    assert "* departs from the benchmark's own settings (math500: problems 4 instead of 500" in printed


def test_samples_tell_why(chat_server: Serve, data: Path, tmp_path: Path) -> None:
    run_recipe(recipe(chat_server(sage), data), run_dir=tmp_path / "run", quiet=True)
    path = tmp_path / "run" / rows_of(tmp_path / "run")["accuracy/pass@1"]["samples"]
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [sample["correct"] for sample in samples] == [True, True, False, False] * 2
    assert {(sample["verifier"], sample["status"]) for sample in samples} == {("math", "judged")}
    assert [sample["extracted"] for sample in samples[::2]] == ["0", "-1", "4", "-1"]
    assert all(sample["why"] for sample in samples)


def test_no_reply_is_asked_for_twice(chat_server: Serve, data: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []
    failing = True

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        if failing and len(asked) >= 3:
            return 500, "{}"
        asked.append((request["messages"][0]["content"], request["seed"]))
        return sage(request)

    described = recipe(chat_server(answer), data)
    described["stages"]["table"]["endpoints"]["sage"]["concurrency"] = 1  # else one may be on its way at the failure
    with pytest.raises(InterruptedRunError, match="run the same command again to go on"):
        run_recipe(described, run_dir=tmp_path / "run", quiet=True)
    assert RunFolder(tmp_path / "run").evaluations() == []
    assert len(asked) == 3
    failing = False
    run_recipe(described, run_dir=tmp_path / "run", quiet=True)
    assert len(asked) == len(set(asked)) == 8
    assert rows_of(tmp_path / "run")["accuracy/pass@1"]["value"] == 0.5


def test_a_killed_evaluation_goes_on(chat_server: Serve, data: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    lock, held, killed = threading.Lock(), threading.Semaphore(0), threading.Event()

    def answer(request: dict[str, Any]) -> tuple[int, str] | None:
        with lock:
            if len(asked) < 4 or killed.is_set():
                asked.append(request["seed"])
                return sage(request)
        held.release()
        killed.wait(600)
        return None

    described = recipe(chat_server(answer), data)
    described["stages"]["table"]["endpoints"]["sage"]["timeout_s"] = 600
    (tmp_path / "e.yaml").write_text(json.dumps(described))
    command = [sys.executable, "-m", "ponder", "run", str(tmp_path / "e.yaml"), "--run", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen([*command, "--quiet"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(2):  # as many as it asks at once: none of its requests is on its way now
            assert held.acquire(timeout=300)
        log = tmp_path / "run" / "stages" / "table" / "state" / "01.jsonl"
        deadline = time.monotonic() + 300
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.set()
    run_recipe(tmp_path / "e.yaml", run_dir=tmp_path / "run", quiet=True)
    assert len(asked) == len(set(asked)) == 8
    assert rows_of(tmp_path / "run")["accuracy/pass@1"]["value"] == 0.5


def test_a_bad_reference_stops_it_before_the_first_request(chat_server: Serve, data: Path, tmp_path: Path) -> None:
    asked: list[Any] = []

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        asked.append(request)
        return sage(request)

    with (data / "math500.jsonl").open("a") as file:
        file.write(json.dumps({"problem": "Broken?", "answer": "\\frac{1}{"}) + "\n")
    with pytest.raises(BrokenInputError, match=r"benchmark math500: math500.jsonl, row 5 \(math500-4\)"):
        run_recipe(recipe(chat_server(answer), data), run_dir=tmp_path / "run", quiet=True)
    assert asked == []


def test_what_the_endpoint_does_not_count_is_no_length(chat_server: Serve, data: Path, tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, str]:
        return 200, json.dumps({"choices": [{"message": {"content": "\\boxed{0}"}, "finish_reason": "stop"}]})

    run_recipe(recipe(chat_server(answer), data), run_dir=tmp_path / "run", quiet=True)
    rows = rows_of(tmp_path / "run")
    assert rows["accuracy/pass@1"]["value"] == 0.25
    assert "length/mean" not in rows


def test_a_local_model_and_tasks_beside_benchmarks(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Settings that the stage does not give are each exam's own."""
    stage = {
        "verb": "evaluate",
        "models": [str(tiny_model)],
        "template": "mini",
        "tasks": {"countdown": {}},
        "benchmarks": ["math500"],
        "data_dir": str(data),
        "problems": 2,
        "sampling": {"max_tokens": 8},
    }
    loaded = load_recipe({"name": "e", "judging": {"workers": 0}, "stages": {"table": stage}})
    run_recipe(loaded, run_dir=tmp_path / "run", quiet=True)
    rows = [row for row in RunFolder(tmp_path / "run").evaluations() if row["metric"] == "accuracy/pass@1"]
    assert [(row["benchmark"], row["problems"], row["k"]) for row in rows] == [("countdown", 2, 16), ("math500", 2, 16)]
    assert [row.get("departures") for row in rows] == [
        None,
        ["problems 2 instead of 500", "max-tokens 8 instead of 32768"],
    ]


def test_wrong_settings_are_said_at_once(data: Path, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    for changes, words in (
        ({"benchmarks": ["math5000"]}, "did you mean `math500`"),
        ({"benchmarks": []}, "give `tasks`, or `benchmarks`, or both"),
        ({"benchmarks": ["math500", "math500"]}, "names one twice"),
        ({"models": ["mini"]}, "`endpoints` names 'sage', which is none of `models`"),
    ):
        with pytest.raises(UsageError, match=words):
            run_recipe(recipe(url, data, **changes), run_dir=tmp_path / "run", quiet=True)


def test_the_plan_counts_benchmarks_by_their_own_settings(data: Path, tmp_path: Path) -> None:
    stage = recipe("http://127.0.0.1:9/v1", data, samples=None, tasks={"countdown": {}})
    loaded = load_recipe(stage)
    (plan,) = plan_recipe(loaded, tmp_path)
    assert plan.heldout_rollouts == 100 * 16 + 500 * 16
    assert plan.max_tokens == 100 * 16 * 512 + 500 * 16 * 32_768
    assert "500 problems of math500 x 16 samples" in plan.formula


def test_another_file_makes_the_result_stale(data: Path) -> None:
    loaded = load_recipe(recipe("http://127.0.0.1:9/v1", data))
    before = stage_hashes(loaded)
    with (data / "math500.jsonl").open("a") as file:
        file.write(json.dumps({"problem": "One more?", "answer": "1"}) + "\n")
    assert stage_hashes(loaded) != before


def test_training_data_are_kept_clean_of_named_benchmarks(data: Path) -> None:
    """All of its problems, also those that the stage does not ask."""
    found = benchmarks(load_recipe(recipe("http://127.0.0.1:9/v1", data, problems=1)))
    assert {label: len(problems) for label, problems in found.items()} == {"table/math500": 4}
    assert Decontamination(10, found).report()["benchmarks"] == {"table/math500": 4}


# --- the page ----------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@contextmanager
def written(page: Path) -> Iterator[Tags]:
    yield Tags(page.read_text(encoding="utf-8"))


def test_the_page_shows_every_item_and_fetches_nothing(chat_server: Serve, data: Path, tmp_path: Path) -> None:
    run_recipe(recipe(chat_server(sage), data), run_dir=tmp_path / "run", quiet=True)
    (page,) = (tmp_path / "run" / "stages" / "table" / "samples").glob("*.html")
    with written(page) as seen:
        assert seen.tags.count("details") == 8  # every sample, folded
        assert {"script", "img", "a", "link", "iframe"}.isdisjoint(seen.tags)
        assert {"onerror", "src", "href"}.isdisjoint(seen.attributes)
        for words in (
            *("sage on MATH-500", "pass@1 50.0 %", "What is 3 + 3?", "reference: 6", "2 of 2 right", "0 of 2 right"),
            *("<script>alert(1)</script>", "[U+202E]", "\\boxed{77}", "departs from the benchmark: problems 4"),
        ):
            assert words in seen.text


def test_long_texts_keep_their_beginning_and_their_end() -> None:
    sample = {
        "problem_id": "p",
        "problem": "q",
        "reference": {"answers": ["1"]},
        "correct": False,
        "finish_reason": "length",
        "sample": 0,
        "length": 9,
        "thinking": f"first{'x' * 200_000}last",
        "answer": None,
        "why": "there is no whole answer",
        "status": "judged",
        "extracted": None,
    }
    about = {"model": "m", "benchmark": "b", "metric": "accuracy/pass@1", "value": 0.0, "interval": None, "k": 1}
    seen = Tags(item_page([sample], [about]))
    assert "first" in seen.text and "last" in seen.text
    assert "characters ...]" in seen.text and len(seen.text) < 80_000
    assert "cut at the length limit" in seen.text and "the reply is not finished" in seen.text
    assert len(item_page([sample] * 500, [about])) < 20_000_000
