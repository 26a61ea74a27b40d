"""The threat model of docs/sandbox.md, line by line: an attack must fail where a harmless program like it works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandbox_helpers import commands_on_host, left_on_host

from ponder.sandbox import Limits, Program, Result, Sandbox, python_program
from ponder.sandbox.box import Launcher

MIB = 2**20
LIMITS = Limits(cpu_s=30, wall_s=120, memory_bytes=128 * MIB, output_bytes=100_000, processes=16, file_bytes=8 * MIB)

LIBC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def works(name, *arguments):
    return getattr(libc, name)(*arguments) != -1
"""


def run(sandbox: Sandbox, source: str, limits: Limits = LIMITS, stdin: str = "") -> Result:
    return sandbox.run(python_program(source, stdin), limits)


def answers(sandbox: Sandbox, source: str, **values: object) -> object:
    """What a program prints as JSON; `values` are its global variables."""
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    result = run(sandbox, f"{given}{source}")
    assert result.status == "ok", result
    return json.loads(result.stdout)


# -- using up the machine


def test_fork_bomb(sandbox: Sandbox) -> None:
    fork = "import os, time\nfor _ in range({}):\n    if os.fork() == 0: time.sleep(9); os._exit(0)\n"
    harmless = run(sandbox, fork.format(8) + "print('forked')")
    assert (harmless.status, harmless.stdout) == ("ok", b"forked\n")
    assert run(sandbox, fork.format(LIMITS.processes + 4) + "print('forked')").stdout == b""
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    result = run(sandbox, bomb, Limits(cpu_s=0.3, wall_s=5, processes=16))
    assert result.status in ("timeout", "failed")
    assert run(sandbox, "print('still here')").stdout == b"still here\n"


def test_memory_bomb(sandbox: Sandbox) -> None:
    take = "taken = []\nfor _ in range({}):\n    taken.append(b'x' * 2**20)\nprint('took it')"
    assert run(sandbox, take.format(64)).stdout == b"took it\n"
    result = run(sandbox, take.format(1000))
    assert (result.status, result.stdout) == ("memory", b"")
    at_once = run(sandbox, "x = bytearray(2**34)\nprint('took it')")
    assert (at_once.status, at_once.stdout) == ("memory", b"")


@pytest.mark.parametrize("memory", ["bytearray(b'x') * size", "fill(mmap.mmap(-1, size))"], ids=["private", "shared"])
def test_memory_bomb_of_many_processes(sandbox: Sandbox, memory: str) -> None:
    source = f"""
import mmap, os, sys, time
def fill(area):
    for at in range(0, len(area), 4096): area[at] = 1
    return area
size, seconds = map(float, input().split())
size = int(size)
for _ in range(6):
    if os.fork() == 0:
        held = {memory}
        print('held', flush=True)
        time.sleep(seconds)
        os._exit(0)
for _ in range(6): os.wait()
"""
    assert run(sandbox, source, stdin=f"{4 * MIB} 0.1").stdout == b"held\n" * 6
    result = run(sandbox, source, stdin=f"{60 * MIB} 100")
    assert result.status == "memory"
    assert result.stdout.count(b"held") < 6


def test_memory_of_no_process(filtered: Sandbox, sandbox: Sandbox) -> None:
    source = f"""{LIBC}
import sys
for key in range({{}}):
    area = libc.shmget(key + 1, 30 * 2**20, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(area, None, 0)
    ctypes.memset(address, 1, 30 * 2**20)
    libc.shmdt(ctypes.c_void_p(address))
print('took it')
"""
    # without the filter it is counted, with it there is none
    assert run(sandbox, source.format(20)).stdout == b""
    assert run(filtered, source.format(1)).stdout == b""
    assert run(filtered, "import os\nos.memfd_create('x')\nprint('took it')").stdout == b""


def test_disk_filler(sandbox: Sandbox) -> None:
    source = """
import sys
written = 0
for number in range(50):
    with open(f'/tmp/file{number}', 'wb') as file:
        for _ in range(int(input())):
            file.write(b'x' * 2**16)
            file.flush()
            written += 2**16
            print(written, flush=True)
"""
    assert run(sandbox, source, stdin="1\n" * 50).status == "ok"
    result = run(sandbox, source, stdin="100\n" * 50)
    assert result.status == "failed"
    assert b"No space left" in result.stderr
    assert int(result.stdout.split()[-1]) <= LIMITS.file_bytes + 2 * MIB
    one_file = run(sandbox, "open('/tmp/x', 'wb').truncate(2**40)\nprint('made it')")
    assert one_file.stdout == b""


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_too_many_files(sandbox: Sandbox, folder: str) -> None:
    source = f"for n in range(int(input())): open('{folder}/%d' % n, 'w')\nprint('made all')"
    assert run(sandbox, source, stdin="200").stdout == b"made all\n"
    result = run(sandbox, source + "\nimport time; time.sleep(100)", stdin="100000")
    assert (result.status, result.stdout) == ("memory", b"")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_infinite_output(sandbox: Sandbox, stream: str) -> None:
    assert len(getattr(run(sandbox, f"import sys\nsys.{stream}.write('x' * 99_000)"), stream)) == 99_000
    result = run(sandbox, f"import sys\nwhile True: sys.{stream}.write('x' * 5000)")
    assert result.status == "output"
    assert len(getattr(result, stream)) == LIMITS.output_bytes


def test_endless_loop(sandbox: Sandbox) -> None:
    spin = "import time\nwhile time.process_time() < {}: pass\nprint('done')"
    limits = Limits(cpu_s=0.3, wall_s=120)
    assert run(sandbox, spin.format(0.05), limits).stdout == b"done\n"
    result = run(sandbox, spin.format(60), limits)
    assert result.status == "timeout"
    assert 0.3 <= result.cpu_s < 30


# -- reaching out of the sandbox


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[dict[str, tuple[int, object]]]:
    """Sockets of the host that anybody on the host can connect to."""
    addresses: list[tuple[str, int, object]] = [
        ("tcp", socket.AF_INET, ("127.0.0.1", 0)),
        ("abstract", socket.AF_UNIX, f"\0ponder-{os.getpid()}"),
        ("file", socket.AF_UNIX, str(tmp_path / "s")),
    ]
    with contextlib.ExitStack() as stack:
        found = {}
        for name, family, address in addresses:
            listener = stack.enter_context(socket.socket(family))
            listener.bind(address)  # type: ignore[arg-type]
            listener.listen()
            found[name] = (int(family), listener.getsockname())
            socket.socket(family).close()
        yield found


CONNECT = """
import socket, sys
def connects(family, address):
    try:
        with socket.socket(family) as client:
            client.settimeout(5)
            client.connect(address)
        return True
    except OSError:
        return False
"""


def test_network_and_sockets_of_the_host(sandbox: Sandbox, listeners: dict[str, tuple[int, object]]) -> None:
    host: dict[str, Callable[..., bool]] = {}
    exec(CONNECT, host)
    assert all(host["connects"](*where) for where in listeners.values())  # from outside they can be reached
    source = f"""{CONNECT}
import json
own = socket.create_server(('127.0.0.1', 0))
print(json.dumps([connects(own.family, own.getsockname()), {{n: connects(*w) for n, w in listeners.items()}}]))
"""
    of_its_own, of_the_host = answers(sandbox, source, listeners=listeners)  # type: ignore[misc]
    assert of_its_own is True
    assert of_the_host == dict.fromkeys(listeners, False)


def test_no_way_to_other_machines(sandbox: Sandbox) -> None:
    source = "import json, socket\nprint(json.dumps([name for _, name in socket.if_nameindex()]))"
    devices = Path("/sys/class/net")
    if sandbox._launcher.seccomp is None:
        assert answers(sandbox, source) == ["lo"]
        assert len(list(devices.iterdir())) >= 1
    assert not run(sandbox, CONNECT + "assert connects(socket.AF_INET, ('192.0.2.1', 80))").stdout


def test_sockets_that_no_namespace_confines(filtered: Sandbox) -> None:
    source = """
import json, socket
def opens(family, kind=socket.SOCK_STREAM):
    try:
        socket.socket(family, kind).close()
        return True
    except PermissionError:
        return False
families = {'unix': 1, 'inet': 2, 'netlink': 16, 'packet': 17, 'inet6': 10, 'alg': 38, 'vsock': 40, 'other': 44}
print(json.dumps([name for name, family in families.items() if opens(family)]))
"""
    assert answers(filtered, source) == ["unix", "inet", "inet6"]


def test_files_of_the_host(sandbox: Sandbox, tmp_path: Path, repository: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    paths = ["/usr/bin/env", "/etc/passwd", "/etc/shadow", "/etc/hostname", "/var", "/run", "/sys", "/mnt", "/boot"]
    paths += [str(secret), str(repository), "/home", "/root", "/proc/1/root" + str(secret), "/dev/mem"]
    visible = answers(
        sandbox, "import json, os\nprint(json.dumps([p for p in paths if os.path.exists(p)]))", paths=paths
    )
    assert visible == ["/usr/bin/env"]


def test_environment_of_the_host(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONDER_SECRET_OF_THE_TEST", "swordfish")
    source = """
import glob, json, os
seen = repr(os.environ)
for path in glob.glob('/proc/[0-9]*/environ'):
    try: seen += repr(open(path).read())
    except PermissionError: pass
print(json.dumps(['swordfish' in seen, 'LANG' in seen]))
"""
    sandbox = Sandbox(launcher, size=1)
    assert answers(sandbox, source) == [False, True]
    sandbox.close()


def test_system_is_read_only(sandbox: Sandbox) -> None:
    source = """
import json, os
def writes(folder):
    try:
        with open(folder + '/new', 'w') as file: file.write('x')
        return True
    except OSError:
        return False
folders = ['/tmp', '.', '/', '/usr', '/usr/bin', '/usr/local/lib', '/dev', '/etc', '/proc', '/proc/sys/kernel', '/lib/']
print(json.dumps([folder for folder in folders if writes(folder)]))
"""
    assert answers(sandbox, source) == ["/tmp", "."]


def test_settings_of_the_kernel(sandbox: Sandbox) -> None:
    source = """
import json
def opens(path, mode):
    try:
        open(path, mode).close()
        return True
    except OSError:
        return False
files = ['/proc/sys/kernel/core_pattern', '/proc/sys/vm/drop_caches', '/proc/sysrq-trigger', '/proc/1/oom_score_adj']
print(json.dumps([opens('/proc/self/comm', 'w'), [path for path in files if opens(path, 'w')]]))
"""
    assert answers(sandbox, source) == [True, []]


def test_own_user_namespaces(sandbox: Sandbox) -> None:
    source = f"""{LIBC}
import json, shutil, subprocess
def runs(*command):
    return subprocess.run(command, capture_output=True).returncode == 0
bwrap = ['bwrap', '--unshare-user', '--ro-bind', '/', '/', 'true'] if shutil.which('bwrap') else ['false']
print(json.dumps([works('getpid'), works('unshare', 0x10000000), works('unshare', 0x20000),
    runs('true'), runs('unshare', '--user', 'true'), runs(*bwrap)]))
"""
    assert answers(sandbox, source) == [True, False, False, True, False, False]


def test_no_capabilities(sandbox: Sandbox) -> None:
    source = """
import json
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(json.dumps([status[name].strip() for name in ('CapEff', 'CapPrm', 'CapBnd', 'NoNewPrivs')]))
"""
    assert answers(sandbox, source) == ["0" * 16] * 3 + ["1"]


# -- attacking the judge


WHO_FORKS = "print(open('/proc/1/stat').read().rpartition(')')[2].split()[19])"  # when process 1 was started


def test_killing_others(sandbox: Sandbox) -> None:
    before = run(sandbox, WHO_FORKS).stdout
    source = """
import json, os, signal
child = os.fork()
if child == 0: signal.pause()
os.kill(child, signal.SIGKILL)
killed = os.waitpid(child, 0)[1] == signal.SIGKILL
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV): os.kill(1, number)
if os.fork() == 0: os.kill(-1, signal.SIGTERM); os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(json.dumps([killed, sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[0]]))
"""
    result = run(sandbox, source)
    assert result.status in ("ok", "failed")  # its own child's signal may come first
    assert run(sandbox, WHO_FORKS).stdout == before != b""  # the zygote lives on


def test_processes_of_the_host_are_out_of_sight(sandbox: Sandbox) -> None:
    source = "import json, os\nprint(json.dumps([int(p) for p in os.listdir('/proc') if p.isdigit()]))"
    assert len([p for p in Path("/proc").iterdir() if p.name.isdigit()]) > 2
    assert len(answers(sandbox, source)) == 2  # type: ignore[arg-type]


def test_tracing_others(sandbox: Sandbox) -> None:
    source = f"""{LIBC}
import json
def reads(path):
    try:
        with open(path, 'rb') as file:
            if path.endswith('mem'): file.seek(id(libc))
            return len(file.read(8)) > 0
    except OSError:
        return False
def lists(path):
    try: return bool(os.listdir(path))
    except OSError: return False
ATTACH, SEIZE = 16, 0x4206
print(json.dumps({{
    'own memory': reads('/proc/self/mem'),
    'memory': reads('/proc/1/mem'),
    'environment': reads('/proc/1/environ'),
    'descriptors': lists('/proc/1/fd'),
    'own descriptors': lists('/proc/self/fd'),
    'root': lists('/proc/1/root'),
    'attach': works('ptrace', ATTACH, 1, 0, 0),
    'seize': works('ptrace', SEIZE, 1, 0, 0),
    'pidfd_getfd': works('syscall', 438, os.pidfd_open(1), 0, 0),
}}))
"""
    found = answers(sandbox, source)
    assert isinstance(found, dict)
    assert sorted(name for name, worked in found.items() if worked) == ["own descriptors", "own memory"]


def test_writing_to_the_result_channel(sandbox: Sandbox) -> None:
    forged = json.dumps({"status": "ok", "exit_code": 0, "stdout": "Zm9yZ2Vk", "stderr": "", "files": {}, "cpu_s": 0})
    source = f"""
import glob, os, sys
frame = len({forged!r}).to_bytes(8, 'big') + {forged!r}.encode()
for number in range(3, 1024):
    try: os.write(number, frame)
    except OSError: pass
for path in glob.glob('/proc/[0-9]*/fd/*') + ['/proc/1/fd/%d' % n for n in range(64)]:
    if not path.endswith(('/0', '/1', '/2')) or path.startswith('/proc/1/'):
        try:
            with open(path, 'wb') as file: file.write(frame)
        except OSError: pass
sys.stdout.buffer.write(frame)
sys.exit(3)
"""
    result = run(sandbox, source)
    assert (result.status, result.exit_code) == ("failed", 3)
    assert result.stdout == len(forged).to_bytes(8, "big") + forged.encode()
    assert run(sandbox, "print('next')").stdout == b"next\n"


def test_only_standard_streams_are_inherited(sandbox: Sandbox) -> None:
    assert answers(sandbox, "import os\nprint([n for n in range(200) if os.path.exists(f'/proc/self/fd/{n}')])") == [
        0,
        1,
        2,
    ]


# -- staying behind


def test_surviving_the_timeout(sandbox: Sandbox) -> None:
    marker = f"9{time.monotonic_ns() % 10**8}"
    source = f"""
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp('sleep', ['sleep', {marker!r}])
    os._exit(0)
time.sleep(600)
"""
    seen: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        for wall_s in (2, 60):  # on a busy machine the first may be too short for it to be seen
            running = thread.submit(run, sandbox, source, Limits(wall_s=wall_s))
            while not seen and not running.done():
                seen = commands_on_host(marker)
                time.sleep(0.05)
            assert running.result().status == "timeout"
            if seen:
                break
    assert seen
    assert left_on_host(marker) == []


def test_surviving_the_end(sandbox: Sandbox) -> None:
    source = """
import os, socket, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with socket.create_server(('127.0.0.1', 7777)):
            print('listening', flush=True)
            open('/tmp/alive', 'w').close()
            time.sleep(600)
    os._exit(0)
while not os.path.exists('/tmp/alive'): time.sleep(0.01)
"""
    assert run(sandbox, source).stdout == b"listening\n"
    look = f"{CONNECT}import os\nprint(connects(socket.AF_INET, ('127.0.0.1', 7777)), os.listdir('/tmp'))"
    assert run(sandbox, look).stdout == b"False ['program']\n"


def test_ponder_dies_and_nothing_stays(launcher: Launcher) -> None:
    marker = f"8{time.monotonic_ns() % 10**8}"
    host = f"""
import os, sys, threading
from ponder.sandbox import Limits, Program, get_sandbox
program = Program(('sleep', {marker!r}))
threading.Thread(target=get_sandbox().run, args=(program, Limits(wall_s=900)), daemon=True).start()
sys.stdin.read()
os._exit(1)
"""
    process = subprocess.Popen([sys.executable, "-c", host], stdin=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not commands_on_host(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert commands_on_host(marker)
    process.kill()
    process.communicate()
    assert left_on_host(marker) == []


LOOK_AROUND = """
import json, os
seen = []
for folder in ('/tmp', '/dev/shm'):
    for path, folders, files in os.walk(folder):
        seen += [os.path.join(path, name) for name in folders + files]
print(json.dumps(sorted(seen)))
"""
CLEAN = ["/tmp/program", "/tmp/program/main.py"]


@pytest.mark.parametrize("closed", [False, True], ids=["plain", "closed folder"])
def test_leaving_files_for_the_next_program(sandbox: Sandbox, closed: bool) -> None:
    source = f"""
import os
for path in ('/tmp/a', '/tmp/.hidden', 'here', '/dev/shm/b'):
    with open(path, 'w') as file: file.write('x')
os.makedirs('/tmp/deep/er')
os.symlink('/usr', '/tmp/deep/link')
{"os.chmod('/tmp/deep', 0)" if closed else ""}
{LOOK_AROUND}
"""
    assert len(answers(sandbox, source)) > 6  # type: ignore[arg-type]
    assert answers(sandbox, LOOK_AROUND) == CLEAN


def test_leaving_kernel_objects_for_the_next_program(sandbox: Sandbox) -> None:
    source = f"""{LIBC}
import json
print(json.dumps([works('shmget', 7, 4096, flags), works('msgget', 7, flags), works('semget', 7, 1, flags)]))
"""
    create = 0o1666
    assert answers(sandbox, source, flags=create) == [sandbox._launcher.seccomp is None] * 3
    assert answers(sandbox, source, flags=0) == [False] * 3


def test_crippling_the_next_program(sandbox: Sandbox) -> None:
    attack = """
import os, resource
for call, *arguments in (
    (resource.prlimit, 1, resource.RLIMIT_FSIZE, (10, 10)),
    (os.setpriority, os.PRIO_PROCESS, 1, 19),
    (os.sched_setaffinity, 1, [0]),
):
    try: call(*arguments)
    except OSError: pass
"""
    look = "import os\nwith open('x', 'w') as file: file.write('x' * 1000)\nprint(os.getpriority(os.PRIO_PROCESS, 0))"
    assert run(sandbox, attack).status == "ok"
    assert run(sandbox, look).stdout == f"{os.getpriority(os.PRIO_PROCESS, 0)}\n".encode()


# -- tricks with links


def test_collecting_follows_no_links(sandbox: Sandbox) -> None:
    script = """
echo good > good
ln -s /usr/bin/env link
ln -s /proc/self/environ zygote
ln -s /proc/1/cmdline judge
ln -s /usr/bin folder
ln -s good inner
mkfifo pipe
mkdir sub
echo sub > sub/file
"""
    wanted = ("good", "link", "zygote", "judge", "folder/env", "inner", "pipe", "sub/file", "sub", "absent")
    result = sandbox.run(Program(("bash", "-c", script), collect=wanted), LIMITS)
    assert result.status == "ok", result
    assert result.files == {"good": b"good\n", "sub/file": b"sub\n"}


def test_collecting_has_a_limit(sandbox: Sandbox) -> None:
    program = Program(
        ("bash", "-c", "for name in a b; do head -c 5000000 /dev/zero > $name; done; ls"), collect=("a", "b")
    )
    assert {name: len(content) for name, content in sandbox.run(program, LIMITS).files.items()} == {"a": 5_000_000}


def test_every_line_of_the_threat_model_has_its_test(repository: Path) -> None:
    table = (repository / "docs" / "sandbox.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    here = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    elsewhere = "".join(path.read_text(encoding="utf-8") for path in (repository / "tests" / "sandbox").glob("*.py"))
    there = set(re.findall(r"^def (test_\w+)", elsewhere, re.M))
    assert named - here - there == set()
    assert here - named == {"test_every_line_of_the_threat_model_has_its_test"}
