"""Fixtures of the tests that run small stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Done, Go, make_model, make_recipe

from ponder.pipeline import run_pipeline


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `make_model`."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def go(tmp_path: Path, model_folder: Path) -> Go:
    """Run the tiny recipe with changes; `folder` names the run."""

    def run(folder: str = "run", **changes: Any) -> Done:
        run_pipeline(make_recipe(model_folder, **changes), tmp_path / folder, quiet=True)
        return Done(tmp_path / folder)

    return run
