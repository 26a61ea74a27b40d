"""Imports run one way: a file imports from its own floor or below, and never in a circle."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = {
    1: ["errors", "recipe", "tasks", "verifiers", "sandbox", "model", "algorithms", "mini", "text"],
    2: ["rewards", "rollout", "training", "store", "progress", "lineage", "doctor", "cluster"],
    3: ["evaluation", "run", "curation", "serving", "capacity", "names"],
    4: ["stages", "ui"],
    5: ["pipeline", "plan", "launch"],
    6: ["cli", "api", "__main__", "__init__"],
}
"""The house of the design: a unit is a folder or a file directly below `ponder/`."""

FLOOR_OF = {unit: floor for floor, units in FLOORS.items() for unit in units}


def module_name(path: Path, root: Path) -> str:
    parts = ["ponder", *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(path: Path, modules: set[str]) -> Iterator[str]:
    """Modules of Ponder that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ponder")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ponder":
            for alias in node.names:  # `from ponder.store import files` imports a module, `... import X` a name in one
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def unit(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.fixture(scope="module")
def imports(repository: Path) -> dict[str, set[str]]:
    root = repository / "ponder"
    files = {module_name(path, root): path for path in root.rglob("*.py")}
    return {name: set(imported(path, set(files))) - {name} for name, path in files.items()}


def test_every_unit_has_a_floor(imports: dict[str, set[str]]) -> None:
    assert {unit(module) for module in imports} <= set(FLOOR_OF), "give the new unit its floor in FLOORS"


def test_no_import_runs_up(imports: dict[str, set[str]]) -> None:
    upward = [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if FLOOR_OF[unit(target)] > FLOOR_OF[unit(module)]
    ]
    assert upward == []


def test_no_modules_and_no_units_import_in_a_circle(imports: dict[str, set[str]]) -> None:
    units: dict[str, set[str]] = {}
    for module, targets in imports.items():
        units.setdefault(unit(module), set()).update({unit(target) for target in targets} - {unit(module)})
    for graph in (imports, units):
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_imports_are_written_in_full(repository: Path) -> None:
    for path in (repository / "ponder").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import hides its floor"


LIGHT = ["ponder.cli", "ponder.pipeline", "ponder.plan", "ponder.run", "ponder.recipe", "ponder.tasks.base"]
LIGHT += ["ponder.store.rollouts", "ponder.store.metrics", "ponder.store.evaluations", "ponder.store.archive"]


def test_what_the_help_needs_loads_neither_torch_nor_transformers() -> None:
    code = f"import sys, {', '.join(LIGHT)}; sys.exit(str({{'torch', 'transformers'}} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_circle_and_a_step_up_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from ponder.store import files\ndef f():\n    import ponder.cli\n")
    assert sorted(imported(tmp_path / "a.py", {"ponder.store.files"})) == ["ponder.cli", "ponder.store.files"]
    assert FLOOR_OF[unit("ponder.cli")] > FLOOR_OF[unit("ponder.store.files")]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
