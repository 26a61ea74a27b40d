"""The model card of an export: every figure from the run's own records, and what is not known said so; and `push`."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ponder.cli import app
from ponder.errors import PonderError, UsageError
from ponder.evaluation.model_card import Subject, card_text
from ponder.evaluation.origin import Licence, find_licence, find_origin
from ponder.evaluation.publishing import publish, push
from ponder.model.export import ExportFacts, ExportSettings, export_model
from ponder.model.folder import load_folder
from ponder.model.formats import WeightType
from ponder.model.load import load_model
from ponder.recipe import load_recipe
from ponder.run import RunFolder, StageRecord
from ponder.store.datasets import Example, write_rows
from ponder.store.evaluations import EvaluationsWriter
from ponder.store.metrics import MetricsLog

RECIPE = {
    "name": "demo",
    "seed": 7,
    "stages": {
        "data": {"verb": "sample", "sources": {"mini-world": {"rows": 30}}},
        "cold": {"verb": "fine_tune", "model": "mini", "data": ["data"], "epochs": 2, "template": "mini"},
        "r1": {
            "verb": "reinforce",
            "model": "cold",
            "template": "mini",
            "tasks": {"countdown": {"languages": ["en", "zh"]}},
            "rewards": {"accuracy": 1, "format": 0.5},
            "steps": 10,
        },
        "table": {"verb": "evaluate", "models": ["mini", "r1"], "template": "mini", "tasks": {"countdown": {}}},
    },
}
CARD = {
    "sampled": 0,
    "read": {"mini-world": 30},
    "kept": 2,
    "dropped": {"near_duplicate": 27, "contaminated": 1, "finished": 0},
    "kept by language": {"en": 1, "zh": 1},
    "decontamination": {"ngram": 10, "benchmarks": {"table/countdown": 48}, "checked": 3, "dropped": 1},
}
FACTS = ExportFacts(
    format="safetensors",
    weights=WeightType.F32,
    name="demo-r1",
    file="",
    ponder="0.1.0",
    difference=0.0,
    tolerance=1e-5,
    tokens=207,
    parameters=890_000,
    context=1024,
    notes=("One thing differs.",),
)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose figures are made up, with two results set aside, and the working folder above `runs/`."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "demo")
    run.path.mkdir(parents=True)
    run.prepare(load_recipe(RECIPE))
    done = StageRecord(verb="sample", state="done", seconds=60, threads=3, sampled_tokens=None, trained_tokens=None)
    records = {
        "data": {"hash": "d0d0d0d0d0"},
        "cold": {"verb": "fine_tune", "hash": "c1c1c1c1c1", "uses": {"mini": "m0m0m0m0", "data": "d0d0d0d0d0"},
                 "trained_tokens": 1234567},
        "cold.old-c0c0c0c0": {"verb": "fine_tune", "hash": "c0c0c0c0c0", "uses": {"mini": "m0m0m0m0"}},
        "r1": {"verb": "reinforce", "hash": "a1a1a1a1a1", "uses": {"cold": "c1c1c1c1c1"}, "sampled_tokens": 99000},
        "r1.old-a0a0a0a0": {"verb": "reinforce", "hash": "a0a0a0a0a0", "uses": {"cold": "c0c0c0c0c0"}},
        "table": {"verb": "evaluate", "hash": "e", "uses": {"mini": "m0m0m0m0", "r1": "a1a1a1a1a1"}},
    }  # fmt: skip
    for name, changes in records.items():
        run.set_record(name, done.model_copy(update=changes))
    for name in ("cold", "r1", "r1.old-a0a0a0a0"):
        shutil.copytree(tiny_model, run.stage_folder(name) / "model")
    rows = [Example(str(i), "mini-world", "general", "en", "Hi", "", "Hello.") for i in range(2)]
    write_rows(run.stage_folder("data") / "data", rows, Example, CARD)
    log = MetricsLog(run.metrics_path, "r1")
    for step in range(11):
        log.write(step, {"reward/mean": step / 10, "watchdog/truncated": float(step in (3, 4))})
        if step % 10 == 0:
            low, high = 0.2 + step / 20, 0.4 + step / 20
            log.write(step, {"heldout/accuracy/pass@1": 0.3 + step / 20, "heldout/accuracy/pass@1_low": low,
                             "heldout/accuracy/pass@1_high": high})  # fmt: skip
    log.close()
    row = {"benchmark": "countdown", "metric": "accuracy/pass@1", "k": 8, "problems": 48, "temperature": 0.6}
    EvaluationsWriter(run.evaluations_path, "table").add(
        [row | {"model": "mini", "value": 0.318, "interval": [0.27, 0.37]},
         row | {"model": "r1", "value": 0.828, "interval": [0.71, 0.91]},
         row | {"model": "somebody-else", "value": 0.999, "interval": [0.9, 1.0]}]
    )  # fmt: skip
    return run


def card_of(reference: str, **changes: Any) -> str:
    origin = find_origin(reference)
    subject = Subject(origin, find_licence(origin), "mini", "llama", {"temperature": 0.6, "eos_token_id": 1}, "{{ x }}")
    return card_text(replace(subject, **changes), FACTS)


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card_tells_a_run_from_its_own_records(run: RunFolder) -> None:
    text = card_of("demo:r1")
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["language"], head["library_name"]) == ("apache-2.0", ["en", "zh"], "transformers")
    assert "Made by the stage `r1` (`reinforce`) of the recipe `demo`, from `mini`" in text
    # stages in order, with the hashes of what they started from
    stages = [line for line in text.splitlines() if line.startswith(("| data |", "| cold |", "| r1 |"))]
    assert stages[:3] == [
        "| data | sample | - | - | - | 1 min 00 s | 0.05 | d0d0d0d0 |",
        "| cold | fine_tune | mini (m0m0m0m0), data (d0d0d0d0) | - | 1,234,567 | 1 min 00 s | 0.05 | c1c1c1c1 |",
        "| r1 | reinforce | cold (c1c1c1c1) | 99,000 | - | 1 min 00 s | 0.05 | a1a1a1a1 |",
    ]
    assert (
        "10 steps of 32 problems x 16 samples, temperature 1, at most 512 tokens; rewards accuracy 1, format 0.5"
        in text
    )
    assert "Seed 7." in text
    # data with counts and hashes
    digest = hashlib.sha256((run.stage_folder("data") / "data" / "examples.parquet").read_bytes()).hexdigest()
    assert "`data`: 2 examples kept of 30 read." in text
    assert "near_duplicate 27, contaminated 1." in text
    assert digest in text
    assert "- `countdown`, difficulty 1, en, zh; generated." in text
    assert "3 examples were searched for word 10-grams of benchmark problems (table/countdown 48); 1 dropped" in text


def test_curves_are_given_by_their_ends(run: RunFolder) -> None:
    text = card_of("demo:r1")
    # means of the first and last five of 0, 0.1, ..., 1.0
    assert "| reward/mean | 0.2 | 0.8 |" in text
    assert "| heldout/accuracy/pass@1 | 0.3 [0.2, 0.4] | 0.8 [0.7, 0.9] |" in text


def test_tables_show_this_model_and_what_it_rests_on_with_their_settings(run: RunFolder) -> None:
    text = card_of("demo:r1")
    assert "82.8 [71, 91]" in text and "31.8 [27, 37]" in text
    assert "somebody-else" not in text
    assert "`table`: problems 48, k 8, temperature 0.6; 95% intervals over problems." in text


def test_figures_of_other_weights_are_not_shown(run: RunFolder) -> None:
    again = run.manifest().stages["r1"].model_copy(update={"hash": "b2b2b2b2"})
    run.set_record("r1", again)
    text = card_of("demo:r1")
    assert "No evaluation of the run measured these weights." in text
    assert "82.8" not in text


def test_a_result_that_was_set_aside_names_its_own_ancestors(run: RunFolder) -> None:
    origin = find_origin("demo:r1.old-a0a0a0a0")
    assert origin.made is not None
    assert origin.made.ancestry() == ["cold.old-c0c0c0c0", "r1.old-a0a0a0a0"]
    text = card_of("demo:r1.old-a0a0a0a0")
    assert "`r1.old-a0a0a0a0`: its settings were others than the recipe's now." in text
    assert "No data set of this model was searched for benchmark problems." in text
    assert "No evaluation of the run measured these weights." in text


def test_limits_are_said(run: RunFolder) -> None:
    limits = card_of("demo:r1").partition("## Limits")[2]
    for said in (
        "- One thing differs.",
        "trained on problems of countdown; nothing is claimed beyond them",
        "Languages of its prompts: en, zh.",
        "One seed (7)",
        "The watchdog spoke up: truncated at 2 steps of r1.",
    ):
        assert said in limits
    run.set_record("r1", run.manifest().stages["r1"].model_copy(update={"state": "interrupted"}))
    assert "The stage is not done: its state is interrupted." in card_of("demo:r1")


def test_the_card_of_a_run_whose_recipe_is_gone_says_so(run: RunFolder) -> None:
    run.recipe_path.write_text("name: demo\nstages: {r1: {verb: from another version}}\n")
    text = card_of("demo:r1")
    assert "The run's recipe cannot be read" in text
    assert "| r1 | reinforce | cold (c1c1c1c1)" in text  # the manifest still knows
    assert "No base model is known" in text


def test_the_card_of_a_model_without_a_run_says_what_is_not_known(tiny_model: Path) -> None:
    text = card_of(str(tiny_model), has_source_card=True)
    assert "There is no record of a run" in text
    assert "[SOURCE_README.md](SOURCE_README.md)" in text
    assert "## Curves" not in text and "## Results" not in text
    assert "language" not in yaml.safe_load(text.split("---\n")[1])


def test_how_to_use_it(tiny_model: Path) -> None:
    text = card_of(str(tiny_model))
    assert "tokenizer.apply_chat_template(" in text
    assert "Its sampling settings: temperature 0.6." in text
    assert "how its prompts should look is not known" in card_of(str(tiny_model), template=None, chat_template=None)
    # a template cannot close the block that shows it
    fenced = card_of(str(tiny_model), template="```\n# Injected\n{prompt}")
    assert "````text\n```\n# Injected\n{prompt}\n````" in fenced
    origin = find_origin(str(tiny_model))
    facts = replace(FACTS, format="gguf", file="m-F16.gguf")
    subject = Subject(origin, find_licence(origin), None, "llama", {}, "{{ x }}")
    assert "llama-cli -m m-F16.gguf --jinja" in card_text(subject, facts)


# --- where a model comes from ---------------------------------------------------------------------------------------


def test_a_stage_is_found_by_run_and_name_and_by_folder(run: RunFolder) -> None:
    by_name, by_folder = find_origin("demo:r1"), find_origin("runs/demo/stages/r1/model")
    assert Path(by_name.reference) == Path(by_folder.reference) == Path("runs/demo/stages/r1/model")
    assert by_name.name == by_folder.name == "demo-r1"
    assert by_name.made is not None and by_name.made.base() == "mini"
    assert find_origin(f"{run.path}:cold").name == "demo-cold"
    with pytest.raises(UsageError, match=r"no model of a stage 'table': give one of cold, r1, r1\.old-a0a0a0a0"):
        find_origin("demo:table")
    with pytest.raises(UsageError, match="is not a run folder"):
        find_origin("nowhere:r1")
    (run.stage_folder("r1") / "model" / "reward.json").write_text("{}")
    with pytest.raises(UsageError, match="is a reward model"):
        find_origin("demo:r1")


def test_a_model_copied_out_of_its_run_has_no_run(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.stage_folder("r1") / "model", tmp_path / "x" / "stages" / "r1" / "model")
    assert find_origin(str(tmp_path / "x" / "stages" / "r1" / "model")).made is None


def licence_of(reference: str) -> Licence:
    return find_licence(find_origin(reference))


def test_licences_are_those_that_the_source_states(tmp_path: Path) -> None:
    mini = licence_of("mini")
    assert mini.id == "apache-2.0" and b"Apache License" in mini.files["LICENSE"]
    folder = tmp_path / "base"
    folder.mkdir()
    assert licence_of(str(folder)) == Licence(
        None, "The base model `base` came without a word on its licence: ask its authors.", {}
    )
    (folder / "LICENSE.txt").write_bytes(b"do what you like")
    (folder / "licensed_by.py").write_bytes(b"no licence")
    assert licence_of(str(folder)).files == {"LICENSE.txt": b"do what you like"}
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    assert (licence_of(str(folder)).id, *licence_of(str(folder)).files) == ("mit", "LICENSE.txt")
    (folder / "README.md").write_text("---\n: [broken\n---\n")
    assert licence_of(str(folder)).id is None
    assert "https://huggingface.co/some/model says which" in licence_of("some/model").why


def test_the_licence_of_a_gguf_file_is_the_one_inside(tmp_path: Path) -> None:
    settings = ExportSettings("gguf", WeightType.F16, "m", licence="mit")
    facts = export_model(load_model("mini-llama"), tmp_path / "out", settings, lambda facts: "")
    assert licence_of(str(tmp_path / "out" / facts.file)).id == "mit"
    assert "is no longer where it was" in licence_of("gone.gguf").why


# --- publish and push -----------------------------------------------------------------------------------------------


def test_a_stage_is_published_with_its_template_licence_and_card(run: RunFolder) -> None:
    done = CliRunner().invoke(app, ["export", "demo:r1", "--to", "out"])
    assert done.exit_code == 0, done.output
    assert "out: F32 safetensors, logits differ by 0" in done.output
    model = load_folder("out")
    assert model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}]) == "User: Hi\nAssistant:"
    assert "# demo-r1" in Path("out/README.md").read_text()
    assert b"Apache License" in Path("out/LICENSE").read_bytes()
    refused = CliRunner().invoke(app, ["export", "demo:r1", "--to", "runs"])
    assert refused.exit_code == 2
    assert "give --force" in refused.output


def test_an_embedded_model_carries_what_its_authors_say(tmp_path: Path) -> None:
    facts = publish("mini-llama", tmp_path / "out", "gguf")
    assert facts.weights is WeightType.F16
    assert "mini-llama" in (tmp_path / "out" / "SOURCE_README.md").read_text()
    facts = publish("mini-llama", tmp_path / "own", "safetensors", template="Q: {prompt}\nA:")
    assert facts.weights is WeightType.F32
    assert load_folder(tmp_path / "own").tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == "Q: x\nA:"


def test_weights_keep_the_type_in_which_they_are_stored(tiny_model: Path, tmp_path: Path) -> None:
    publish(str(tiny_model), tmp_path / "half", "safetensors", WeightType.BF16)
    assert publish(str(tmp_path / "half"), tmp_path / "again", "safetensors").weights is WeightType.BF16


class FakeHub:
    """The two calls of `huggingface_hub.HfApi` that `push` makes."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if self.fails is not None:
            raise self.fails
        self.calls.append((repo_id, options))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> Path:
    publish(str(tiny_model), tmp_path / "out", "safetensors")
    return tmp_path / "out"


def test_push_makes_a_private_repository_and_uploads_the_folder(exported: Path) -> None:
    hub = FakeHub()
    assert push(exported, "me/model", api=hub) == "https://hub/me/model"
    (made, options), (_, uploaded) = hub.calls
    assert (made, options) == ("me/model", {"private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", exported)


def test_push_uploads_nothing_but_what_was_compared(exported: Path, tiny_model: Path) -> None:
    hub = FakeHub()
    (exported / "README.md").write_text("# My own words\n")
    push(exported, "me/model", api=hub)  # the card is its owner's to edit
    (exported / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UsageError, match=r"model\.safetensors is not as the export wrote it"):
        push(exported, "me/model", api=hub)
    with pytest.raises(UsageError, match="is no export"):
        push(tiny_model, "me/model", api=hub)
    assert len(hub.calls) == 2


def test_what_the_hub_says_is_one_sentence(exported: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    with pytest.raises(UsageError, match="hf auth login"):
        push(exported, "me/model", api=FakeHub(LocalTokenNotFoundError("Token is required")))
    with pytest.raises(UsageError, match="'a b' is no name of a repository"):
        push(exported, "a b", api=FakeHub(HFValidationError("bad")))
    with pytest.raises(PonderError, match=r"the Hub did not take .*: no route") as caught:
        push(exported, "me/model", api=FakeHub(ConnectionError("no route\nto host")))
    assert caught.value.exit_code == 1
    with pytest.raises(PonderError, match="the Hub did not take"):
        push(exported, "me/model", api=HfApi(endpoint="http://127.0.0.1:9", token="none"))


@pytest.mark.parametrize(
    ("arguments", "answer", "asked"), [((), "n\n", False), ((), "y\n", True), (("--yes",), "", True)]
)
def test_push_asks_first(
    arguments: tuple[str, ...], answer: str, asked: bool, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    upload: Callable[..., str] = lambda *values, **options: found.append((values, options)) or "there"  # noqa: E731
    monkeypatch.setattr("ponder.evaluation.publishing.push", upload)
    done = CliRunner().invoke(app, ["push", str(exported), "me/model", "--public", *arguments], input=answer)
    assert (done.exit_code == 0) == asked
    assert found == ([((exported, "me/model"), {"private": False})] if asked else [])
    assert json.loads((exported / "export.json").read_text())["format"] == "safetensors"
