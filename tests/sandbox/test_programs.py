"""What programs get and give back, and how the pool treats its sandboxes."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import UsageError
from ponder.sandbox import Limits, Program, Sandbox, get_sandbox, python_program
from ponder.sandbox.box import Box, Launcher, _request
from ponder.sandbox.zygote import Job

PATIENT = Limits(cpu_s=60, wall_s=120)
"""For programs that compute much, on a slow machine."""

WHICH = "print(open('/proc/1/stat').read().rpartition(')')[2].split()[19])"  # the start of the sandbox's first process


def test_input_output_and_exit_code(filtered: Sandbox) -> None:
    result = filtered.run(
        python_program("import sys\nprint(input()[::-1])\nprint('no', file=sys.stderr)\nexit(7)", "äbc")
    )
    assert (result.status, result.exit_code) == ("failed", 7)
    assert (result.stdout, result.stderr) == ("cbä\n".encode(), b"no\n")
    assert result.files == {}


@pytest.mark.parametrize(
    ("source", "exit_code", "output"),
    [
        ("print(__name__, __file__)", 0, "__main__ main.py\n"),
        ("import sys\nprint(sys.argv)", 0, "['main.py']\n"),
        ("open(1, 'w').write('never closed')", 0, "never closed"),
        ("import sys\nfile = open(1, 'w')\nfile.write('kept open')\nsys.exit(-1)", 255, "kept open"),
        ("import sys\nsys.stdout.write('closed')\nsys.stdout.close()", 0, "closed"),
        ("import atexit\natexit.register(print, 'last')\nraise SystemExit('no')", 1, "last\n"),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()",
            0,
            "late\n",
        ),
        ("import os\nos._exit(9)", 9, ""),
        ("import os\nos.kill(os.getpid(), 9)", -9, ""),
        ("raise KeyError('x')", 1, ""),
        ("1 +", 1, ""),
        ("\ud800", 1, ""),
        ("print('\\0')", 0, "\0\n"),
        ("x: list[int | None]\nprint(__annotations__)", 0, "{'x': list[int | None]}\n"),
        ("import multiprocessing\nprint(multiprocessing.Pool(2).map(abs, [-1, 2]))", 0, "[1, 2]\n"),
        ("import subprocess\nsubprocess.run(['echo', 'hi'])", 0, "hi\n"),
        ("import sys\nsys.setrecursionlimit(10**6)\nf = lambda n: n and f(n - 1)\nprint(f(20000))", 0, "0\n"),
    ],
)
def test_warm_python_is_python(filtered: Sandbox, source: str, exit_code: int, output: str) -> None:
    """A forked program ends as one that an interpreter of its own runs."""
    result = filtered.run(python_program(source), PATIENT)
    assert (result.exit_code, result.stdout.decode()) == (exit_code, output), result.stderr


def test_traceback_shows_the_program_only(filtered: Sandbox) -> None:
    result = filtered.run(python_program("def f():\n    return 1 / 0\nf()"))
    lines = result.stderr.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "main.py", line 3, in <module>'
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "<string>" not in result.stderr.decode()


def test_order_of_sets_and_random_numbers(filtered: Sandbox) -> None:
    """Sets of strings have one order, so that a verdict repeats; random numbers differ from program to program."""
    sets = {filtered.run(python_program("print({'a', 'b', 'c', 'd', 'e', 'f'})")).stdout for _ in range(2)}
    filtered.close()
    assert sets == {filtered.run(python_program("print({'a', 'b', 'c', 'd', 'e', 'f'})")).stdout}
    numbers = [filtered.run(python_program("import random\nprint(random.random())")).stdout for _ in range(2)]
    assert numbers[0] != numbers[1]


def test_files_and_arguments(filtered: Sandbox) -> None:
    files = {"main.py": b"import helper, sys\nprint(helper.x, sys.argv[1:], open('data/in').read())"}
    files |= {"helper.py": b"x = 5", "data/in": b"inside"}
    result = filtered.run(Program(("python3", "main.py", "a b", ""), files))
    assert result.stdout == b"5 ['a b', ''] inside\n"


def test_other_languages(filtered: Sandbox) -> None:
    assert filtered.run(Program(("bash", "-c", "read x; echo $((x + 1))"), stdin=b"41")).stdout == b"42\n"
    missing = filtered.run(Program(("no-such-program",)))
    assert (missing.status, missing.exit_code) == ("failed", 127)
    assert b"no-such-program" in missing.stderr


def test_compiled_program(filtered: Sandbox) -> None:
    if filtered.run(Program(("sh", "-c", "command -v g++"))).status != "ok":
        pytest.skip("no C++ compiler")
    source = b"#include <iostream>\nint main() { int x; std::cin >> x; std::cout << 2 * x << '\\n'; }"
    compiler = ("g++", "-o", "main", "main.cpp")
    compiled = filtered.run(Program(compiler, {"main.cpp": source}, collect=("main",)), PATIENT)
    assert compiled.status == "ok", compiled
    assert filtered.run(Program(("./main",), {"main": compiled.files["main"]}, b"21")).stdout == b"42\n"
    broken = filtered.run(Program(compiler, {"main.cpp": b"int main("}, collect=("main",)), PATIENT)
    assert (broken.status, broken.files) == ("failed", {})


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a\0b", "."])
def test_files_outside_the_working_folder_are_refused(name: str) -> None:
    for arguments in ({"files": {name: b""}}, {"collect": (name,)}):
        with pytest.raises(UsageError, match="working folder"):
            Program(("true",), **arguments)  # type: ignore[arg-type]


def test_no_command_and_too_large_files_are_refused(filtered: Sandbox) -> None:
    with pytest.raises(UsageError, match="command"):
        Program(())
    with pytest.raises(UsageError, match="file_bytes=1000"):
        filtered.run(python_program("pass", "x" * 1000), Limits(file_bytes=1000))
    whole = Limits(file_bytes=1000)
    assert filtered.run(python_program("print(len(input()))", "x" * 900), whole).stdout == b"900\n"


@settings(max_examples=20)
@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_bytes_come_through_unchanged(stdin: bytes, data: bytes) -> None:
    source = (
        b"import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())\nsys.stderr.buffer.write(open('f', 'rb').read())"
    )
    program = Program(("python3", "p.py"), {"p.py": source, "f": data}, stdin, collect=("f",))
    result = get_sandbox().run(program)
    assert (result.stdout, result.stderr, result.files) == (stdin, data, {"f": data})


def test_warm_sandbox_is_used_again_until_a_program_had_to_be_killed(filtered: Sandbox) -> None:
    first, second = (filtered.run(python_program(WHICH)).stdout for _ in range(2))
    assert first == second != b""
    filtered.run(python_program("raise ValueError"))
    assert filtered.run(python_program(WHICH)).stdout == first
    assert filtered.run(python_program("import time; time.sleep(9)"), Limits(wall_s=0.1)).status == "timeout"
    assert filtered.run(python_program(WHICH)).stdout != first


def test_other_size_of_tmp_gets_another_sandbox(filtered: Sandbox) -> None:
    free = "import os\ns = os.statvfs('/tmp')\nprint(s.f_blocks * s.f_frsize // 2**20)"
    assert filtered.run(python_program(free), Limits(file_bytes=2**22)).stdout == b"5\n"
    assert filtered.run(python_program(free), Limits(file_bytes=2**23)).stdout == b"9\n"
    assert len(filtered._idle) == 1


def test_programs_run_side_by_side_from_many_threads(launcher: Launcher) -> None:
    sandbox = Sandbox(launcher, size=2)

    def square(number: int) -> int:
        return int(sandbox.run(python_program("print(int(input()) ** 2)", str(number))).stdout)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(square, range(24))) == [number**2 for number in range(24)]
    assert 1 <= len(sandbox._idle) <= 2
    sandbox.close()
    assert sandbox._idle == []
    assert square(5) == 25
    sandbox.close()


def test_sandbox_outlives_the_thread_that_started_it(filtered: Sandbox) -> None:
    filtered.close()
    seen: list[bytes] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: seen.append(filtered.run(python_program(WHICH)).stdout))
        thread.start()
        thread.join(60)
        time.sleep(0.05)
    assert seen[0] == seen[1]


def test_silent_sandbox_is_killed_at_the_deadline(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock outside is the last word, whatever the zygote does."""
    box = Box(launcher, 2**20, warm=False)
    request = _request
    monkeypatch.setattr("ponder.sandbox.box.GRACE_S", 0.2)
    monkeypatch.setattr("ponder.sandbox.box._request", lambda program, _: request(program, Limits(wall_s=1000)))
    result = box.run(python_program("import time; time.sleep(60)"), Limits(wall_s=0.3))
    assert (result.status, result.exit_code) == ("timeout", None)
    assert not box.usable
    box.close()
    assert box._process.returncode is not None


def test_dead_and_lying_sandboxes_are_crashes(launcher: Launcher) -> None:
    box = Box(launcher, 2**20, warm=False)
    box._process.kill()
    assert box.run(python_program("print(1)"), Limits()).status == "crashed"
    assert not box.alive
    box.close()


def test_zygote_never_kills_all_outside_of_a_namespace() -> None:
    """`kill(-1)` is for the first process of a namespace alone."""
    assert os.getpid() != 1
    request = {"limits": {}, "files": {}, "stdin": "", "collect": []}
    with pytest.raises(AssertionError, match="first process"):
        Job(request, ["/nowhere"], isolated=True)._kill()
