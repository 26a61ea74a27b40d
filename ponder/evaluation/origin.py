"""Where a model comes from: the run and stage that made it, the base that they started from, and its licence."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ponder.errors import PonderError, UsageError
from ponder.model.embedded import FOLDERS
from ponder.recipe import Recipe
from ponder.run import Manifest, RunFolder, StageRecord

APACHE = "apache-2.0"
_LICENCE_FILES = re.compile(r"(?i)(licen[sc]e|copying|notice|use_policy)([._-].*)?")
_MAX_FILE_BYTES = 1 << 20
_REWARD = "reward.json"
"""Lies beside the weights of a reward model."""


@dataclass(frozen=True)
class Made:
    """The stage of a run that made a model, as the run's folder tells it now."""

    run: RunFolder
    stage: str
    """Its name in the manifest; a result that was set aside has a dot in it."""
    manifest: Manifest
    recipe: Recipe | None
    """None where the recipe is missing or of another version of Ponder."""

    @property
    def record(self) -> StageRecord:
        return self.manifest.stages[self.stage]

    @property
    def recipe_stage(self) -> str:
        """Its name in the recipe."""
        return self.stage.partition(".")[0]

    def ancestry(self) -> list[str]:
        """The stages that the model rests on, each after those that it starts from, and itself last.

        Found by the hashes that each stage wrote down, so a result that was set aside since has the name under which it
        is kept. What the folder no longer holds is left out.
        """
        found: dict[str, None] = {}

        def visit(stage: str) -> None:
            for source, used in self.manifest.stages[stage].uses.items():
                for name, record in self.manifest.stages.items():
                    if name.partition(".")[0] == source and record.hash == used and name not in found:
                        visit(name)
            found[stage] = None

        visit(self.stage)
        return list(found)

    def base(self) -> str | None:
        """The model that the first of them started from; None where it was made from nothing, or nobody knows."""
        name: str | None = self.recipe_stage
        while self.recipe is not None and name in self.recipe.stages:
            name = getattr(self.recipe.stages[name], "model", None)
        return None if name == self.recipe_stage else name


@dataclass(frozen=True)
class Origin:
    """A model as it was asked for."""

    reference: str
    """As `ponder.model.load.load_model` takes it."""
    name: str
    """What people call it: RUN-STAGE for a run's model."""
    made: Made | None = None


@dataclass(frozen=True)
class Licence:
    """Under which terms a model may be used, and how that is known."""

    id: str | None
    """As the Hub writes it; None where it is not known."""
    why: str
    """A sentence."""
    files: Mapping[str, bytes]
    """Texts that must travel along."""


def find_origin(reference: str) -> Origin:
    """The model that `reference` names: RUN:STAGE, a stage's model folder, or whatever `load_model` takes.

    Raises `UsageError` when a run holds no such model, and for reward models, which write no replies.
    """
    path = Path(reference)
    run_name, colon, stage = reference.rpartition(":")
    if colon and not path.exists():
        run = RunFolder.find(run_name)
        path = run.stage_folder(stage) / "model"
        if not path.is_dir():
            folders = {name: run.stage_folder(name) / "model" for name in run.manifest().stages}
            models = [name for name, at in folders.items() if at.is_dir() and not (at / _REWARD).exists()]
            raise UsageError(
                f"{run.path} holds no model of a stage {stage!r}: give one of {', '.join(models) or 'none'}"
            )
        reference = str(path)
    if (path / _REWARD).exists():
        raise UsageError(f"{reference} is a reward model, which scores replies and writes none: name a policy")
    made = _made(path)
    name = path.stem if path.suffix == ".gguf" else path.absolute().name if path.exists() else reference
    return Origin(reference, name if made is None else f"{made.run.name}-{made.stage}", made)


def find_licence(origin: Origin) -> Licence:
    """The licence of a model: that of the base that it was trained from."""
    if origin.made is None:
        return _licence_of(origin.reference)
    base = origin.made.base()
    if base is None:
        return Licence(None, "No base model is known: whoever trained this one says what may be done with it.", {})
    return _licence_of(base)


def _made(folder: Path) -> Made | None:
    """The stage behind `runs/NAME/stages/STAGE/model`; None for any other folder."""
    parts = folder.absolute().parts
    if len(parts) < 5 or parts[-1] != "model" or parts[-3] != "stages":
        return None
    run, stage = RunFolder(folder.absolute().parents[2]), parts[-2]
    try:
        manifest = run.manifest()
    except PonderError:
        return None  # a model copied out of its run
    if stage not in manifest.stages:
        return None
    try:
        recipe = run.recipe()
    except PonderError:
        recipe = None
    return Made(run, stage, manifest, recipe)


# --- licences -------------------------------------------------------------------------------------------------------


def _licence_of(base: str) -> Licence:
    path = Path(base).expanduser()
    if base in FOLDERS:
        return _with_text(APACHE, f"`{base}` is part of Ponder.", {})
    if base == "smollm2-135m" or path.suffix == ".gguf":
        return _licence_of_gguf(base)
    if path.is_dir():
        return _licence_of_folder(path)
    where = f": https://huggingface.co/{base} says which" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else ""
    return Licence(None, f"The licence of the base model `{base}` applies{where}.", {})


def _licence_of_gguf(base: str) -> Licence:
    from ponder.model.gguf import read_metadata
    from ponder.model.load import resolve

    try:
        path = resolve(base)
        stated = read_metadata(path).get("general.license")
    except PonderError:
        return Licence(None, f"The base model `{base}` is no longer where it was: its licence applies.", {})
    return _with_text(stated, f"As `{path.name}` says of itself.", _texts_in(path.parent))


def _licence_of_folder(folder: Path) -> Licence:
    texts = _texts_in(folder)
    stated = _front_matter(folder / "README.md").get("license")
    if stated is not None:
        return _with_text(str(stated), f"As the README.md of the base model `{folder.name}` says.", texts)
    if texts:
        return Licence(None, f"See {', '.join(texts)}, which came with the base model `{folder.name}`.", texts)
    return Licence(None, f"The base model `{folder.name}` came without a word on its licence: ask its authors.", {})


def _with_text(stated: str | None, why: str, texts: Mapping[str, bytes]) -> Licence:
    """Apache asks for its text to travel along; Ponder holds it, being under the same licence."""
    if stated == APACHE and not texts:
        texts = {path.name: path.read_bytes() for path in _own_licence()}
    return Licence(stated, why, texts)


def _own_licence() -> Iterator[Path]:
    """LICENSE beside the package in a clone, in the distribution's folder where it was installed."""
    clone = Path(__file__).parents[2] / "LICENSE"
    if clone.is_file():
        yield clone
        return
    try:
        files = importlib.metadata.distribution("ponder").files or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (Path(str(file.locate())) for file in files if file.name == "LICENSE")


def _texts_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and _LICENCE_FILES.fullmatch(path.name))
    return {path.name: path.read_bytes() for path in found if path.stat().st_size <= _MAX_FILE_BYTES}


def _front_matter(path: Path) -> dict[str, object]:
    """The YAML at the head of a model card; empty where there is none."""
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        return {}
    head = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        found = yaml.safe_load(head[1]) if head is not None else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
