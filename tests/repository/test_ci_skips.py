"""A test that CI skips in silence is a failure: tried on small suites of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ONE_SKIPPED = "import pytest\ndef test_ok(): pass\ndef test_gone(): pytest.skip({reason!r})\n"
FILE_SKIPPED = "import pytest\npytest.importorskip('no_such_package_of_anybody')\ndef test_gone(): pass\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_known(): assert False\n"


def exit_code(folder: Path, conftest: str, test_file: str, ci: bool) -> int:
    """pytest's exit code on a suite of one file under our conftest.py."""
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    (folder / "test_small.py").write_text(test_file, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PONDER_CI")}
    if ci:
        environment["PONDER_CI"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.parametrize(
    ("test_file", "ci", "expected"),
    [
        (ONE_SKIPPED.format(reason="no bubblewrap"), True, 1),
        (ONE_SKIPPED.format(reason="no bubblewrap"), False, 0),
        (ONE_SKIPPED.format(reason="../shared/data is absent"), True, 0),
        (FILE_SKIPPED, True, 2),
        (EXPECTED_FAILURE, True, 0),
    ],
)
def test_forbidden_skips_fail_in_ci_only(
    tmp_path: Path, repository: Path, test_file: str, ci: bool, expected: int
) -> None:
    conftest = (repository / "tests" / "conftest.py").read_text(encoding="utf-8")
    assert exit_code(tmp_path, conftest, test_file, ci) == expected
