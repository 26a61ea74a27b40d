"""What the page reads: runs, rollouts by every filter, tables, and what a stranger may not read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from made_runs import earlier_run, known_run, rollout, write_metrics, write_results
from starlette.testclient import TestClient

from ponder.evaluation.metrics import paired_difference, paired_p_value
from ponder.run import RunFolder
from ponder.serving.app import create_app
from ponder.serving.models import ModelSource, ServedModels
from ponder.serving.settings import ServeSettings
from ponder.store.rollouts import RolloutWriter
from ponder.ui import rollouts
from ponder.ui.app import STATIC, mount_ui
from ponder.ui.models import checkpoints, embedded_models
from ponder.ui.rollouts import Filter, RolloutBrowser


def app_for(runs: Path) -> FastAPI:
    app = create_app(ServedModels({"mini-llama": ModelSource("mini-llama")}), ServeSettings())
    mount_ui(app, runs)
    return app


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    known_run(folder / "known")
    broken = folder / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[TestClient]:
    with TestClient(app_for(runs), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def get(client: TestClient, path: str, status: int = 200, **query: Any) -> Any:
    answer = client.get(f"/api/{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


# --- the page and its headers --------------------------------------------------------------------------------------


def test_the_page_may_load_nothing_but_its_own_files(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/api/runs", "/static/nothing.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
    page = (STATIC / "index.html").read_text()
    assert "<style" not in page and "style=" not in page and "onclick" not in page
    assert "content-security-policy" not in client.get("/v1/models").headers


def test_every_vendored_file_is_listed_with_its_licence() -> None:
    vendor = STATIC / "vendor"
    listed = (vendor / "VERSIONS").read_text()
    for folder in (entry for entry in vendor.iterdir() if entry.is_dir()):
        assert folder.name in listed
        assert (folder / "LICENSE").is_file()
    assert "url(fonts/KaTeX_Main-Regular.woff2)" in (vendor / "katex" / "katex.min.css").read_text()
    assert all("sourceMappingURL" not in path.read_text() for path in vendor.rglob("*.js"))


# --- runs ----------------------------------------------------------------------------------------------------------


def test_runs_are_listed_and_a_broken_one_says_why(client: TestClient) -> None:
    found = {run["name"]: run for run in get(client, "runs")["runs"]}
    assert "manifest.json is not a JSON file" in found["broken"]["error"]
    assert [(stage["name"], stage["state"]) for stage in found["known"]["stages"]] == [
        ("zero", "done"),
        ("table", "done"),
    ]
    assert found["known"]["seconds"] == 44.0


def test_a_stage_that_waits_is_shown_too(tmp_path: Path) -> None:
    run = known_run(tmp_path / "waiting")
    manifest = json.loads(run.manifest_path.read_text())
    del manifest["stages"]["table"]
    run.manifest_path.write_text(json.dumps(manifest))
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        stages = get(client, "runs/waiting")["stages"]
    assert [(stage["name"], stage["state"], stage["from"]) for stage in stages] == [
        ("zero", "done", ["mini-llama"]),
        ("table", "waiting", ["mini-llama", "zero"]),
    ]


def test_what_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/api/runs/known")
    again = client.get("/api/runs/known", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_metrics_come_by_stage_and_from_a_cursor(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        first = get(client, "runs/known/metrics", stage=["zero", "other"])
        assert [line["accuracy/pass@1"] for line in first["lines"]["zero"]] == [0.1, 0.2, 0.3, 0.4]
        write_metrics(run, range(5, 6))
        new = get(client, "runs/known/metrics", stage="zero", since=first["cursor"])
    assert [line["step"] for line in new["lines"]["zero"]] == [5]


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e", "known%2f..%2fknown", "", "."])
def test_only_runs_of_the_folder_can_be_read(client: TestClient, name: str) -> None:
    answer = client.get(f"/api/runs/{name}/rollouts/facets")
    assert answer.status_code == 404


def test_lineage_is_drawn_and_names_are_escaped(client: TestClient) -> None:
    svg = get(client, "runs/known/lineage")["svg"]
    assert svg.startswith("<svg") and ">zero</text>" in svg


# --- rollouts ------------------------------------------------------------------------------------------------------

FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({}, lambda row: True),
    ({"verdict": "right"}, lambda row: row.correct),
    ({"verdict": "wrong"}, lambda row: not row.correct),
    ({"verdict": "cut"}, lambda row: row.finish_reason == "length"),
    ({"verdict": "unanswered"}, lambda row: row.answer is None),
    ({"step_from": 2, "step_to": 3}, lambda row: 2 <= row.step <= 3),
    ({"version_from": 1, "version_to": 2}, lambda row: 1 <= row.version <= 2),
    ({"length_from": 21}, lambda row: row.length >= 21),
    ({"length_to": 21, "language": "zh"}, lambda row: row.length <= 21 and row.language == "zh"),
    ({"split": "test"}, lambda row: row.split == "test"),
    ({"task": "countdown"}, lambda row: False),
    ({"reward": "accuracy", "reward_to": 0.5}, lambda row: row.rewards["accuracy"] <= 0.5),
    ({"reward": "form at", "reward_from": 0.5, "reward_to": 0.5}, lambda row: True),
    ({"reward": 'form at") OR 1 --', "reward_from": 0}, lambda row: False),
    ({"text": "wait, 1+2"}, lambda row: "Wait, 1+2" in row.text),
    ({"text": "100%_s"}, lambda row: "100%_s" in row.text),
    ({"text": "1_0"}, lambda row: False),
    ({"text": "what is"}, lambda row: True),
    ({"problem": "held-out"}, lambda row: row.problem_id == "held-out"),
    ({"stage": "zero"}, lambda row: True),
    ({"stage": "zero' OR 1 --"}, lambda row: False),
]


@pytest.mark.parametrize(("query", "keeps"), FILTERS, ids=[str(query) for query, _ in FILTERS])
def test_a_filter_keeps_what_it_says_the_newest_first(
    client: TestClient, runs: Path, query: dict[str, Any], keeps: Any
) -> None:
    every = list(RunFolder(runs / "known").rollouts().iter_rollouts())
    wanted = [(row.step, row.sample, row.text) for row in every if keeps(row)][::-1]
    found = get(client, "runs/known/rollouts", **query)
    assert [(row["step"], row["sample"], row["text"]) for row in found["rows"]] == wanted
    assert found["next"] is None
    assert get(client, "runs/known/rollouts/count", **query)["count"] == len(wanted)


def test_pages_hold_every_rollout_once_though_new_ones_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "PAGE", 5)
    run = known_run(tmp_path / "known")
    browser, seen, before = RolloutBrowser(run), [], None
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        while True:
            page = browser.page(Filter(), before)
            seen += [row["id"] for row in page["rows"]]
            before = page["next"]
            if before is None:
                break
            writer.add(9, [rollout(9, 0)])
    assert seen == list(range(17, 0, -1))


def test_what_was_set_aside_is_not_among_the_rest(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        writer.rename_stage("zero.old-12345678")
    assert RolloutBrowser(run).page(Filter(), None)["rows"] == []
    assert RolloutBrowser(run).count(Filter(stage="zero.old-12345678")) == 17


def test_facets_name_what_there_is(client: TestClient) -> None:
    found = get(client, "runs/known/rollouts/facets")
    assert found["rewards"] == ["accuracy", "form at"]
    known = {"stage": "zero", "task": "arithmetic", "first": 1, "last": 4, "versions": None}
    assert found["groups"] == [
        {**known, "split": split, "language": language}
        for split, language in (("test", "en"), ("train", "en"), ("train", "zh"))
    ]
    assert "math" in found["verifiers"]


def test_versions_can_be_filtered_by_where_they_differ_from_the_steps(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        writer.add(6, [rollout(6, 0, version=2)])
    browser = RolloutBrowser(run)
    assert browser.facets()["groups"][0]["versions"] == [0, 3]
    assert [row["step"] for row in browser.page(Filter(version_from=2, version_to=2), None)["rows"]] == [6, 3, 3, 3, 3]


def test_a_run_of_an_earlier_version_opens_unchanged(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "known")
    before = run.rollouts_path.read_bytes()
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        assert get(client, "runs/known/rollouts/facets")["groups"][0]["versions"] is None
        assert {row["version"] for row in get(client, "runs/known/rollouts")["rows"]} == {None}
        assert get(client, "runs/known/rollouts", version_from=0)["rows"] == []
        assert get(client, "runs/known/rollouts/count", text="Wait", verdict="right")["count"] == 4
        row = get(client, "runs/known/rollouts/2")
    assert row["version"] is None
    assert (row["tokens"]["entropies"], row["tokens"]["ratios"], row["tokens"]["versions"]) == ([], [], [])
    assert set(row["tokens"]["logprobs"]) == {-0.5}
    assert run.rollouts_path.read_bytes() == before


def test_turning_round_is_found_and_shown_where_it_happens(client: TestClient) -> None:
    found = get(client, "runs/known/rollouts", turns="correction", step_from=2)
    assert [(row["step"], row["sample"], row["kind"]) for row in found["rows"]] == [
        (4, 1, "correction"),
        (3, 1, "correction"),
        (2, 1, "correction"),
    ]
    (row, *_) = found["rows"]
    assert row["text"][slice(*row["turn"])] == "Wait"
    assert get(client, "runs/known/rollouts", turns="new course")["rows"] == []


def test_the_place_where_a_long_text_turns_is_in_its_preview(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    text = "<think>" + "x" * 900 + " 1+2=4. Wait, 1+2=3</think><answer>3</answer>"
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        writer.add(9, [rollout(9, 1, text=text)])
    (row,) = RolloutBrowser(run).turns(Filter(turns="any", step_from=9), None)["rows"]
    assert row["text"].startswith("…x") and row["text"][slice(*row["turn"])] == "Wait"


def test_one_rollout_has_all_that_was_stored(client: TestClient) -> None:
    row = get(client, "runs/known/rollouts/2")
    text = "<think>1+2=4. Wait, 1+2=3</think><answer>3</answer>"
    assert (row["text"], row["answer"], row["rewards"]["form at"]) == (text, "3", 0.5)
    assert row["reference"] == {"expression": "1+2", "answer": 3}
    assert "".join(row["tokens"]["texts"]) == text
    assert set(row["tokens"]["logprobs"]) == {-0.5}
    assert (set(row["tokens"]["entropies"]), set(row["tokens"]["ratios"])) == ({1.0}, {2.0})
    assert (row["version"], row["tokens"]["versions"]) == (0, [])
    assert [text[start:end] for start, end in row["reflections"]] == ["Wait"]
    assert row["turn"]["kind"] == "correction"


def test_tokens_of_half_a_character_are_one_piece(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    from ponder.model.embedded import FOLDERS
    from ponder.model.tokenizer import Tokenizer

    ids = Tokenizer.from_folder(FOLDERS["mini-llama"]).encode("a🜚b")
    assert len(ids) > 3
    count = len(ids)
    own: dict[str, Any] = {"text": "a🜚b", "token_ids": ids, "logprobs": [-1.0] * count, "entropies": [0.5] * count}
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        writer.add(9, [rollout(9, 0, **own, ratios=[2.0] * count, versions=[(0, 7), (2, 8)])])
        writer.add(9, [rollout(9, 0, text="other", token_ids=ids, logprobs=[-1.0] * len(ids))])
        writer.add(9, [rollout(9, 0, token_ids=[], logprobs=[])])
    pieces = RolloutBrowser(run).details(18)["tokens"]
    assert pieces["texts"] == ("a", "🜚", "b")
    assert pieces["logprobs"] == (-1.0, -float(count - 2), -1.0)
    assert pieces["entropies"] == (0.5, (count - 2) / 2, 0.5)
    assert pieces["ratios"] == (2.0, 2.0 ** (count - 2), 2.0)
    assert pieces["versions"] == (7, 7, 8)
    assert "spell another text" in RolloutBrowser(run).details(19)["tokens"]["missing"]
    assert "not stored" in RolloutBrowser(run).details(20)["tokens"]["missing"]


@pytest.mark.parametrize(
    "versions", [[(1, 0), (2, 1)], [(0, 0), (0, 1)], [(0, 0), (10**12, 1)], [(0, 1), (9, 2), (4, 3)], [(0, 1)]]
)
def test_what_is_no_number_of_a_token_is_left_out(tmp_path: Path, versions: list[tuple[int, int]]) -> None:
    run = known_run(tmp_path / "known")
    count = len(rollout(9, 0).token_ids)
    damaged = rollout(9, 0, ratios=[math.inf] * count, entropies=[1.0] * (count + 1), versions=versions)
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        writer.add(9, [damaged])
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        pieces = get(client, "runs/known/rollouts/18")["tokens"]
    assert (set(pieces["ratios"]), pieces["entropies"], pieces["versions"]) == ({None}, [], [])


def test_a_problem_is_followed_group_by_group(client: TestClient) -> None:
    found = get(client, "runs/known/problems/arithmetic-en-1")
    assert [(group["stage"], group["step"], len(group["rollouts"])) for group in found["groups"]] == [
        ("zero", step, 4) for step in (1, 2, 3, 4)
    ]
    assert [own["correct"] for own in found["groups"][0]["rollouts"]] == [1, 1, 0, 0]
    assert get(client, "runs/known/problems/nothing", 404)["code"] == "problem_not_found"


def judge(client: TestClient, number: int, verifier: str = "") -> tuple[int, Any]:
    answer = client.post(f"/api/runs/known/rollouts/{number}/judge", json={"verifier": verifier})
    return answer.status_code, answer.json()


def test_a_rollout_is_judged_again_by_its_rule_and_by_others(client: TestClient) -> None:
    assert judge(client, 1) == (200, {"correct": True, "extracted": "3", "why": "1+2 is 3", "status": "judged"})
    assert judge(client, 3)[1]["correct"] is False
    status, verdict = judge(client, 17, "math")  # its reference is the number alone
    assert (status, verdict["correct"], verdict["extracted"]) == (200, True, "3")
    assert judge(client, 4)[1]["status"] == "unreadable"
    for number, verifier, status in ((1, "math", 400), (17, "", 400), (1, "nonsense", 400), (9999, "", 404)):
        found, body = judge(client, number, verifier)
        assert found == status and body["error"]["message"]


def test_a_run_without_rollouts_says_so(tmp_path: Path) -> None:
    known_run(tmp_path / "known").rollouts_path.unlink()
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        assert get(client, "runs/known/rollouts", 404)["code"] == "no_rollouts"


def test_a_query_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = known_run(tmp_path / "known")
    monkeypatch.setattr(rollouts, "COUNT_S", -1.0)
    monkeypatch.setattr(rollouts, "STEPS_BETWEEN_LOOKS", 1)
    assert RolloutBrowser(run).count(Filter(text="1+2")) is None
    monkeypatch.setattr(rollouts, "QUERY_S", -1.0)
    with pytest.raises(rollouts.TooLongError):
        RolloutBrowser(run).page(Filter(text="1+2"), None)


# --- tables --------------------------------------------------------------------------------------------------------


def test_a_table_holds_cells_and_copies_of_itself(client: TestClient) -> None:
    found = get(client, "runs/known/tables/table")
    (table,) = found["tables"]
    assert (table["models"], table["benchmarks"]) == (["mini-llama", "zero"], ["sums"])
    assert table["cells"][1][0] == {"value": 0.75, "interval": [0.1, 0.9]}
    assert "| zero" in table["markdown"]
    rows = list(csv.DictReader(io.StringIO(table["csv"])))
    assert rows[1] == {
        "model": "zero",
        "benchmark": "sums",
        "measure": "pass@1",
        "value": "0.75",
        "low": "0.1",
        "high": "0.9",
    }
    assert get(client, "tables")["results"] == [{"run": "known", "stages": ["table"]}]


def difference(client: TestClient, model: str, other: str, status: int = 200, run: str = "known") -> Any:
    places = {"run": "known", "stage": "table", "other_run": run, "other_stage": "table"}
    return get(client, "tables/difference", status, benchmark="sums", model=model, other_model=other, **places)


def test_two_models_are_compared_on_the_same_problems(client: TestClient) -> None:
    tables = [[True, True], [True, False]], [[True, False], [False, False]]
    found, turned = difference(client, "zero", "mini-llama"), difference(client, "mini-llama", "zero")
    expected = paired_difference(*tables)
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    assert found["value"] == 0.5 == -turned["value"]
    assert found["p_value"] == turned["p_value"] == paired_p_value(*tables)
    assert (found["better"], found["worse"], turned["better"], found["problems"]) == (2, 0, 0, 2)


def test_models_of_other_runs_can_be_compared_unless_asked_otherwise(tmp_path: Path) -> None:
    known_run(tmp_path / "known")
    write_results(known_run(tmp_path / "other"), {"zero": [[False], [False]]})
    write_results(known_run(tmp_path / "longer"), {"zero": [[True], [True], [True]]})
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        assert difference(client, "zero", "zero", run="other")["value"] == 0.75
        assert difference(client, "zero", "zero", 409, run="longer")["code"] == "not_paired"


def test_samples_open_from_their_cell(client: TestClient) -> None:
    found = get(client, "runs/known/tables/table/samples", model="zero", benchmark="sums")
    assert [row["correct"] for row in found["rows"]] == [True, True, True, False]
    assert found["rows"][0]["text"] == "<b>zero</b>"
    wrong = get(client, "runs/known/tables/table/samples", model="zero", benchmark="sums", verdict="wrong")
    assert [row["line"] for row in wrong["rows"]] == [3]
    assert get(client, "runs/known/tables/table/samples", 404, model="x", benchmark="sums")["code"] == "no_samples"


def test_samples_come_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponder.ui.tables.PAGE", 3)
    known_run(tmp_path / "known")
    where = {"model": "zero", "benchmark": "sums"}
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        first = get(client, "runs/known/tables/table/samples", **where)
        rest = get(client, "runs/known/tables/table/samples", start=first["next"], **where)
    assert [row["line"] for row in first["rows"] + rest["rows"]] == [0, 1, 2, 3]
    assert rest["next"] is None


def test_results_from_elsewhere_cannot_name_a_file_outside_the_run(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    rows = json.loads(run.evaluations_path.read_text())
    for row in rows:
        row["samples"] = "../secret.jsonl"
    run.evaluations_path.write_text(json.dumps(rows))
    with TestClient(app_for(tmp_path), base_url="http://127.0.0.1") as client:
        get(client, "runs/known/tables/table/samples", 404, model="zero", benchmark="sums")


def test_the_papers_figures_are_marked_as_published(client: TestClient) -> None:
    found = get(client, "tables/published")
    assert found["notice"] == "Published, not measured here"
    assert found["tables"][0]["rows"][0]["values"][-1] == 79.8


# --- models to talk to ---------------------------------------------------------------------------------------------


def test_checkpoints_are_models_but_reward_models_and_what_was_set_aside(tmp_path: Path) -> None:
    run = known_run(tmp_path / "known")
    for name in ("zero", "table", "zero.old-12345678"):
        (run.stage_folder(name) / "model").mkdir(parents=True)
        (run.stage_folder(name) / "model" / "config.json").write_text("{}")
    manifest = json.loads(run.manifest_path.read_text())
    manifest["stages"]["table"]["verb"] = "train_reward"
    manifest["stages"]["zero.old-12345678"] = manifest["stages"]["zero"]
    run.manifest_path.write_text(json.dumps(manifest))
    assert list(checkpoints(tmp_path)) == ["known/zero"]
    assert {"mini", "mini-qwen", "mini-llama"} <= embedded_models().keys()


@given(st.text(max_size=30))
def test_no_text_that_is_searched_for_breaks_the_query(text: str) -> None:
    where, values = Filter(text=text).where()
    assert (
        text not in where
        or text in "(texts.text LIKE ? ESCAPE '\\' OR texts.prompt LIKE ? ESCAPE '\\') stage NOT LIKE '%.%' AND "
    )
    assert where.count("?") == len(values)
