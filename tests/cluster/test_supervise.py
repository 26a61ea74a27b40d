"""What starts a run again when it dies, with real processes that die in real ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ponder.cluster.processes import descendants, end_processes, is_alive, scratch_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PARENT = """
import sys
from pathlib import Path
from ponder.cluster.supervise import supervise
from ponder.errors import InterruptedRunError

def progress():
    return {path.name: path.stat().st_size for path in Path("progress").glob("*")}

try:
    sys.exit(supervise([sys.executable, "-c", sys.argv[1]], progress, 9, float(sys.argv[2]), print))
except InterruptedRunError as error:
    print(error)
    sys.exit(error.exit_code)
"""

CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from ponder.cluster.supervise import join_supervisor
join_supervisor()
start = len(Path("starts").read_text()) if Path("starts").exists() else 0
Path("starts").write_text("x" * (start + 1))

Path("progress").mkdir(exist_ok=True)

def step(name="stage", size=start + 1):
    Path("progress", name).write_text("x" * size)

def ready():
    Path("pids").write_text(" ".join(map(str, (os.getpid(), *others))))

others = []
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(body: str, stop_s: float = 20) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", PARENT, CHILD + body, str(stop_s)]
        return subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def pids(folder: Path) -> list[int]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (folder / "pids").exists() and (text := (folder / "pids").read_text()):
            return [int(pid) for pid in text.split()]
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize("code", [0, 5])
def test_an_exit_through_python_is_passed_on_whatever_its_code(
    code: int, run: Callable[..., subprocess.Popen[str]]
) -> None:
    assert ended(run(f"sys.exit({code})")) == (code, "")


def test_a_killed_run_is_started_again_and_so_is_one_that_ends_without_a_word(
    run: Callable[..., subprocess.Popen[str]],
) -> None:
    code, said = ended(run("step()\nif start == 0: os.kill(os.getpid(), 9)\nif start == 1: os._exit(1)\nsys.exit(0)"))
    assert code == 0
    first, second = said.splitlines()
    assert first == "the run was killed by SIGKILL; it goes on where it was (start 2)"
    assert "exit code 1" in second and "(start 3)" in second


def test_three_deaths_in_a_row_without_progress_are_enough(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    code, said = ended(run("if start < 2: step()\nos.abort()"))
    assert code == 5
    assert len((tmp_path / "starts").read_text()) == 2 + 3
    assert "SIGABRT, 3 times in a row without progress" in said.splitlines()[-1]


def test_work_that_is_done_again_is_no_progress_and_any_mark_that_grows_is(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Marks fall when a run goes back to its checkpoint; one is told of that was there before the first start."""
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "before").write_text("xxx")
    body = """
step("before", [1, 2, 3, 4, 1, 1, 2, 4][start])
step("later", [0, 0, 1, 1, 1, 1, 1, 1][start])
os.abort()
"""
    code, said = ended(run(body))
    assert code == 5
    # the start that passes `before` is the fourth; `later` is new in the first and grows in the third
    assert len((tmp_path / "starts").read_text()) == 4 + 3
    assert "3 times in a row without progress" in said.splitlines()[-1]


def test_it_ends_what_a_dead_run_left_behind(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    body = """
if start == 0:
    # a grandchild in a session of its own, whose parent is gone
    shell = "sleep 600 >/dev/null 2>&1 & echo $!"
    others.append(int(subprocess.check_output(["setsid", "sh", "-c", shell])))
    ready()
    os.kill(os.getpid(), 9)
"""
    assert ended(run(body))[0] == 0
    assert not any(map(is_alive, pids(tmp_path)))


def test_sigterm_is_passed_on_and_not_followed_by_a_new_start(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = run("signal.signal(signal.SIGTERM, lambda *a: sys.exit(5))\nready()\ntime.sleep(60)")
    pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (5, "")
    assert (tmp_path / "starts").read_text() == "x"


def test_a_run_that_does_not_stop_is_killed(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = run("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\ntime.sleep(60)", stop_s=0.2)
    pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 5
    assert said == "the run was killed by SIGKILL when it was told to stop: the same command goes on\n"


def test_the_run_dies_with_its_supervisor(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = run("ready()\ntime.sleep(60)")
    (child,) = pids(tmp_path)
    process.kill()
    process.communicate(timeout=300)  # until the child, too, has closed its output
    end_processes([child], 60)
    assert not is_alive(child)


def test_a_scratch_folder_goes_with_its_owner_at_the_latest_when_the_next_is_made(tmp_path: Path) -> None:
    body = (
        "import os\nfrom ponder.cluster.processes import scratch_folder\n"
        "with scratch_folder('test') as folder: print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert left.is_dir() and left.parent == tmp_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with scratch_folder("test") as mine:
            assert list(tmp_path.iterdir()) == [mine]
            with scratch_folder("test") as second:  # the first is in use
                assert sorted(tmp_path.iterdir()) == sorted([mine, second])
        assert list(tmp_path.iterdir()) == []


def test_descendants_are_all_generations() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60; true"]) as process:
        deadline = time.monotonic() + 60
        while len(descendants(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        below = descendants(process.pid)
        assert len(below) == 2
        assert set(below) < set(descendants(os.getpid()))
        end_processes([process.pid, *below], 0)
    end_processes(below, 60)
    assert not any(map(is_alive, below))
