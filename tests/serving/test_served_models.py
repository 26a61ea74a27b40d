"""Models by id: loaded when asked for, dropped when memory is needed, never while in use."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from ponder.errors import BrokenInputError, UsageError
from ponder.model.folder import LoadedModel
from ponder.serving import models as served
from ponder.serving.errors import ApiError
from ponder.serving.models import ModelSource, ServedModel, ServedModels, named_sources


@pytest.fixture
def folders(tmp_path: Path, tiny_model: Path) -> dict[str, ModelSource]:
    for name in "abc":
        shutil.copytree(tiny_model, tmp_path / name)
    return {name: ModelSource(str(tmp_path / name)) for name in "abc"}


def size_of(folders: dict[str, ModelSource]) -> int:
    return ServedModels(folders).acquire("a").bytes


def test_the_least_recently_used_idle_model_is_dropped(folders: dict[str, ModelSource]) -> None:
    models = ServedModels(folders, max_bytes=2 * size_of(folders))
    a, b = models.acquire("a"), models.acquire("b")
    models.release(a)
    models.release(b)
    assert models.acquire("a") is a
    models.release(a)
    models.release(models.acquire("c"))
    assert models.loaded_bytes == 2 * a.bytes
    assert models.acquire("a") is a
    assert models.acquire("b") is not b


def test_models_in_use_stay_and_others_are_refused(folders: dict[str, ModelSource]) -> None:
    models = ServedModels(folders, max_bytes=size_of(folders))
    a = models.acquire("a")
    with pytest.raises(ApiError, match="--memory") as refused:
        models.acquire("b")
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]
    models.release(a)
    assert models.acquire("b").id == "b"


def test_new_weights_in_the_same_place_are_loaded(folders: dict[str, ModelSource]) -> None:
    models = ServedModels(folders)
    old = models.acquire("a")
    os.utime(folders["a"].reference, (1, 1))
    assert models.acquire("a") is not old
    assert models.created(folders["a"]) == 1


def test_unknown_and_broken_models(folders: dict[str, ModelSource], tmp_path: Path) -> None:
    models = ServedModels({"gone": ModelSource(str(tmp_path / "gone"))})
    with pytest.raises(ApiError) as unknown:
        models.acquire("nope")
    assert unknown.value.status == 404
    with pytest.raises(BrokenInputError):
        models.acquire("gone")


def test_discovered_models_come_and_go(folders: dict[str, ModelSource]) -> None:
    found: dict[str, ModelSource] = {}
    models = ServedModels({"a": folders["a"]}, discover=lambda: found)
    assert set(models.sources()) == {"a"}
    found["run/zero"] = folders["b"]
    assert set(models.sources()) == {"a", "run/zero"}
    assert models.acquire("run/zero").id == "run/zero"


def test_names_from_the_command_line(tmp_path: Path, tiny_model: Path) -> None:
    stage = tmp_path / "runs" / "r1" / "stages" / "zero" / "model"
    shutil.copytree(tiny_model, stage)
    sources = named_sources(["mini", str(stage), f"mine={tiny_model}", str(tiny_model)], "r1-zero")
    assert list(sources) == ["mini", "r1/zero", "mine", "tiny model"]
    assert sources["mine"] == ModelSource(str(tiny_model), "r1-zero")
    with pytest.raises(UsageError, match="mini"):
        named_sources(["mini", "mini"])
    with pytest.raises(BrokenInputError, match="there is no model"):
        named_sources(["no-such-model"])
    for half in ("=mini", "mine=", ""):
        with pytest.raises(UsageError, match="must be MODEL or ID=MODEL"):
            named_sources([half])


def test_loading_one_model_does_not_hold_up_another(
    folders: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ServedModels(folders)
    loaded = models.acquire("a")
    begun, go_on = threading.Event(), threading.Event()
    real = served.load_model

    def slow_load(reference: str) -> LoadedModel:
        begun.set()
        assert go_on.wait(120)
        return real(reference)

    monkeypatch.setattr(served, "load_model", slow_load)
    found: list[ServedModel] = []
    threads = [threading.Thread(target=lambda: found.append(models.acquire("b"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(120)
    assert models.acquire("a") is loaded
    go_on.set()
    for thread in threads:
        thread.join(120)
    assert len(set(map(id, found))) == 1
    assert found[0].users == 3
