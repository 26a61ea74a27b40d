"""What pyproject.toml, the lock and the Makefile say of each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def lock(repository: Path) -> dict[str, str]:
    lines = (repository / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_the_lock_holds_a_fitting_version_of_all_that_is_asked_for(
    project: dict[str, Any], lock: dict[str, str]
) -> None:
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_torch_is_a_range_in_the_project_and_comes_first_in_the_lock(
    project: dict[str, Any], lock: dict[str, str]
) -> None:
    torch = next(r for r in map(Requirement, project["dependencies"]) if r.name == "torch")
    assert [s.operator for s in torch.specifier] == [">="]
    assert next(iter(lock)) == "torch"
    assert "+" not in lock["torch"]


def test_make_without_a_target_lists_the_targets(repository: Path) -> None:
    done = subprocess.run(["make"], cwd=repository, capture_output=True, text=True, timeout=500, check=True)
    for target in ("demo", "test", "check", "bench", "clean"):
        assert f"make {target}" in done.stdout


def test_demo_and_test_need_nothing_but_make_and_python(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: \$\(CORE\)", makefile, re.MULTILINE)
    assert re.search(r"^test: \$\(DEV\)", makefile, re.MULTILINE)


HELP_OF_ALL = """
import runpy, sys
from pathlib import Path
sys.modules["torch"] = None
sys.path[:0] = ["benchmarks", "."]
for script in sorted(Path("benchmarks").glob("*.py")):
    sys.argv = [str(script), "--help"]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, script
"""


def test_every_benchmark_explains_itself_without_torch_or_peers(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL], cwd=repository, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    for script in (repository / "benchmarks").glob("*.py"):
        assert script.name == "measure.py" or f"python benchmarks/{script.name}" in done.stdout
