"""A test that CI skips in silence is a failure: tried on a small suite of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FILES = {
    "test_bare.py": "import pytest\ndef test_ok(): pass\ndef test_gone(): pytest.skip('no bubblewrap')\n",
    "test_allowed.py": "import pytest\ndef test_gone(): pytest.skip('../shared/data is absent')\n",
    "test_file.py": "import pytest\npytest.importorskip('no_such_package_of_anybody')\ndef test_gone(): pass\n",
    "test_known.py": "import pytest\n@pytest.mark.xfail\ndef test_known(): assert False\n",
}


def outcome(folder: Path, repository: Path, ci: bool) -> tuple[int, set[str]]:
    """pytest's exit code on the suite under our conftest.py, and what it calls failed."""
    conftest = (repository / "tests" / "conftest.py").read_text(encoding="utf-8")
    for name, text in {**FILES, "conftest.py": conftest}.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PONDER_CI")}
    if ci:
        environment["PONDER_CI"] = "1"
    options = ["-p", "no:cacheprovider", "--rootdir", ".", "--continue-on-collection-errors", "."]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    return done.returncode, set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE))


def test_in_ci_only_skips_with_an_allowed_reason_pass(tmp_path: Path, repository: Path) -> None:
    code, failed = outcome(tmp_path, repository, ci=True)
    assert code == 1
    assert failed == {"test_bare.py::test_gone", "test_file.py"}


def test_elsewhere_every_skip_passes(tmp_path: Path, repository: Path) -> None:
    assert outcome(tmp_path, repository, ci=False) == (0, set())
