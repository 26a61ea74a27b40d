"""The checks of one machine: small functions of what a run needs. A new check is a function and its place in a list.

Nothing here takes a GPU: the driver is asked through nvidia-smi, torch in a process of its own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.cluster.runtime import RESERVE_OR_CPU
from ponder.doctor.check import Check, State, ask
from ponder.doctor.needs import Needs, Node, without_room
from ponder.sandbox import probe

GIB = 2**30
OLDEST_TORCH = (2, 9)
ASK_S = 120.0
"""A first import of torch or vLLM from a cold network disk takes its time."""

_TORCH_FACTS = """
import json, torch
facts = {"version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip}
print(json.dumps(facts | {"available": torch.cuda.is_available(), "devices": torch.cuda.device_count()}))
"""
_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits")
_RAY_PROCESS_BYTES = GIB // 2
_COPIES_TRAINED = 4
"""Weights, gradients and two moments."""
_COPIES_ON_DISK = 10
"""The model a stage leaves; two checkpoints of weights and two moments; and the next one, before the older one goes."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver describes it."""

    name: str
    driver: str
    total_mib: int
    free_mib: int


def python(needs: Needs) -> Check:
    """The interpreter."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def ponder(needs: Needs) -> Check:
    """Ponder itself."""
    return Check("ponder", "ok", f"{version('ponder') or 'as source'}, {Path(__file__).parents[1]}")


def torch(needs: Needs) -> Check:
    """Which torch, and whether its build fits the machine."""
    facts, failure = torch_facts()
    if facts is None:
        return Check("torch", "problem", f"cannot be imported: {failure}", "install torch (docs/install.md)")
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for the CPU"
    found, gpus = f"{facts['version']}, {build}", gpu_list()[0]
    if tuple(map(int, facts["version"].split(".")[:2])) < OLDEST_TORCH:
        return Check("torch", "problem", found, "install torch 2.9 or newer")
    if gpus and not facts["cuda"]:
        worth: State = "problem" if needs.asks_for_gpus else "warning"
        return Check("torch", worth, f"{found}, beside a GPU", "install torch's CUDA build to use it (docs/install.md)")
    if gpus and not facts["available"]:
        advice = f"install a driver for CUDA {facts['cuda']}, or look whether CUDA_VISIBLE_DEVICES hides the GPUs"
        return Check("torch", "problem", f"{found}, but sees no GPU with driver {gpus[0].driver}", advice)
    if facts["cuda"] and not gpus and not facts["available"]:
        advice = "nothing, if this machine is to compute on its CPU; the CPU build is smaller"
        return Check("torch", "warning", f"{found}, without a GPU", advice)
    return Check("torch", "ok", found)


def driver(needs: Needs) -> Check:
    """The GPUs' driver."""
    gpus, failure = gpu_list()
    if failure:
        return Check("driver", "problem", f"nvidia-smi says: {failure}", "mend the driver, often by a restart")
    return Check("driver", "ok", gpus[0].driver if gpus else "none")


def devices(needs: Needs) -> Check:
    """GPUs and how much of their memory is free."""
    gpus, _ = gpu_list()
    if not gpus:
        if needs.gpu_here:
            advice = "run on a machine with one, or set `device: cpu` and the `gpus` of `cluster` to 0"
            return Check("devices", "problem", "no GPU, and the recipe asks for one", advice)
        return Check("devices", "ok", f"no GPU, {cores()} CPU cores")
    free = ", ".join(f"{gpu.free_mib / 1024:.0f}" for gpu in gpus)
    found = f"{len(gpus)} x {gpus[0].name}, GiB free of {gpus[0].total_mib / 1024:.0f}: {free}"
    if any(gpu.free_mib < 0.9 * gpu.total_mib for gpu in gpus):
        advice = "end the processes that nvidia-smi lists, or leave those GPUs out by CUDA_VISIBLE_DEVICES"
        return Check("devices", "warning", found, advice)
    return Check("devices", "ok", found)


def engine(needs: Needs) -> Check:
    """What samples: the native engine, or vLLM in an environment of its own."""
    if needs.vllm_python is None:
        return Check("engine", "ok", "native")
    said, failure = ask([needs.vllm_python, "-c", "import vllm; print(vllm.__version__)"], ASK_S)
    if failure:
        advice = "name vLLM's environment in cluster.rollout.vllm.python (`make vllm` makes one)"
        return Check("engine", "problem", f"vLLM by {needs.vllm_python} does not start: {failure}", advice)
    return Check("engine", "ok", f"vLLM {said.splitlines()[-1]}, {needs.vllm_python}")


def ray(needs: Needs) -> Check:
    """Whether Ray is installed, where the recipe needs it."""
    found = version("ray")
    if found is None and needs.place != "local":
        return Check("ray", "problem", "not installed", 'pip install "ponder[ray]"')
    return Check("ray", "ok", found or "not installed, and not needed")


def run_disk(needs: Needs) -> Check:
    """Room where the run folder lies, or will lie."""
    folder = existing(needs.run_dir)
    free = shutil.disk_usage(folder).free
    asked = _COPIES_ON_DISK * sum(needs.trained_bytes)
    found = f"{_size(free)} free in {folder}; models and checkpoints take about {_size(asked)}"
    if not os.access(folder, os.W_OK):
        return Check("run folder", "problem", f"{folder} cannot be written to", "choose another folder with --run")
    if free < GIB // 4:
        return Check("run folder", "problem", found, "free space, or choose another folder with --run")
    if free < asked + GIB:
        return Check("run folder", "warning", found, "free space, or choose another folder with --run")
    return Check("run folder", "ok", found)


def temporary_disk(needs: Needs) -> Check:
    """Room for temporary files, and for Ray's sockets and logs."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}"
    if free < GIB // 10:
        return Check("temp folder", "problem", found, "free space there, or set TMPDIR to another disk")
    if free < GIB:
        return Check("temp folder", "warning", found, "free space there, or set TMPDIR to another disk")
    return Check("temp folder", "ok", found)


def shared_memory(needs: Needs) -> Check:
    """/dev/shm, through which Ray hands weights to the processes of a node."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        worth: State = "ok" if needs.place == "local" else "warning"
        return Check("/dev/shm", worth, "there is none", "Ray will use the temp folder, which is slower")
    free, asked = shutil.disk_usage(folder).free, 2 * needs.weight_bytes
    if needs.place != "local" and free < asked + GIB // 4:
        advice = "make it larger: --shm-size in Docker, an emptyDir of medium Memory in Kubernetes"
        return Check("/dev/shm", "warning", f"{_size(free)} free; new weights take {_size(asked)}", advice)
    return Check("/dev/shm", "ok", f"{_size(free)} free")


def memory(needs: Needs) -> Check:
    """Memory that processes may still take here."""
    available = available_memory()
    processes = sum(share.count for share in needs.shares) if needs.place == "ray here" else 0
    asked = _COPIES_TRAINED * needs.weight_bytes + processes * (_RAY_PROCESS_BYTES + needs.weight_bytes)
    found = f"{_size(available)} available"
    if needs.place != "ray cluster" and not needs.gpu_here and available < asked:
        advice = "end other processes, or train a smaller model"
        return Check("memory", "warning", f"{found}; the recipe takes {_size(asked)} besides activations", advice)
    return Check("memory", "ok", found)


def open_files(needs: Needs) -> Check:
    """How many files and sockets a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} at most"
    asked = 256 if needs.place == "local" else 4096
    if soft != resource.RLIM_INFINITY and soft < asked:
        ceiling = "" if hard == resource.RLIM_INFINITY or hard >= asked else f" (the hard limit is {hard:,})"
        return Check("open files", "warning", most, f"run `ulimit -n 65536` before{ceiling}")
    return Check("open files", "ok", most)


def ports(needs: Needs) -> Check:
    """Whether a port can be opened."""
    try:
        with socket.create_server(("", 0)):
            return Check("ports", "ok", "a port could be opened")
    except OSError as error:
        return Check("ports", "problem", f"no port can be opened: {error.strerror}", "allow this user to listen")


def sandbox(needs: Needs) -> Check:
    """Whether programs that a model wrote can be run apart from the machine."""
    found = probe()
    if found.launcher is None:
        worth: State = "problem" if needs.runs_programs else "warning"
        why = "the recipe judges programs" if needs.runs_programs else "needed only where programs are judged"
        return Check("sandbox", worth, f"none works, as {found.problem}", f"see docs/sandbox.md ({why})")
    if found.missing:
        return Check("sandbox", "warning", f"bubblewrap works, with {'; '.join(found.missing)}", "see docs/sandbox.md")
    return Check("sandbox", "ok", "bubblewrap, control groups and a filter of system calls")


def hub(needs: Needs) -> Check:
    """Models that the run will download; only said here."""
    if not needs.hub:
        return Check("hub", "ok", "nothing is downloaded")
    found = f"the run reads {', '.join(needs.hub)} from the Hugging Face Hub, unless its cache has it"
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true"):
        return Check("hub", "warning", found, "HF_HUB_OFFLINE is set: only what the cache has will be found")
    return Check("hub", "ok", found)


def room_here(needs: Needs) -> Check:
    """Whether the recipe's workers and ranks fit on this machine, where Ray is started here for them."""
    if needs.place != "ray here":
        return Check("resources", "ok", "one process is all that is asked for")
    # Ray is told of as many cores as the recipe reserves: too few only make it slow
    check = resources(needs, [Node(len(gpu_list()[0]), math.inf)], "this machine has")
    reserved = sum(share.count * share.cpus for share in needs.shares)
    if check.state == "ok" and reserved > cores():
        advice = "lower the `workers`, `ranks` or `cpus` of `cluster`: processes that share cores are slow"
        return Check("resources", "warning", f"{reserved:g} CPU cores reserved, {cores()} here", advice)
    return check


def resources(needs: Needs, nodes: list[Node], who_has: str) -> Check:
    """Whether the recipe's workers and ranks find room on the nodes."""
    cpus = sum(node.cpus for node in nodes)
    have = f"{who_has} {sum(node.gpus for node in nodes):g} GPUs"
    have += f" and {cpus:g} CPU cores" if math.isfinite(cpus) else ""
    want = "; ".join(f"{s.count} x {s.setting} ({s.gpus:g} GPUs, {s.cpus:g} cores each)" for s in needs.shares)
    if needs.refuses_idle_gpus and any(node.gpus for node in nodes):
        return Check("resources", "problem", f"{want}: {have}, which nobody reserves", RESERVE_OR_CPU)
    left_out = without_room(needs.shares, nodes)
    if left_out is None:
        return Check("resources", "ok", f"{want}: {have}" if want else have)
    advice = f"lower {left_out.setting} or what each of them reserves, or add nodes"
    return Check("resources", "problem", f"{want}: {have}", advice)


EVERYWHERE: tuple[Callable[[Needs], Check], ...] = (
    python,
    ponder,
    torch,
    driver,
    devices,
    engine,
    ray,
    temporary_disk,
    shared_memory,
    memory,
    open_files,
    ports,
)
"""What every machine of a cluster must have."""

DRIVER_ONLY: tuple[Callable[[Needs], Check], ...] = (run_disk, sandbox, hub)
"""What only the machine needs that `ponder run` is started on."""


def check_machine(needs: Needs) -> list[Check]:
    """Every check of the machine that starts the run, with what its room must hold unless a cluster has that."""
    alone = () if needs.place == "ray cluster" else (room_here,)
    return [check(needs) for check in (*EVERYWHERE, *DRIVER_ONLY, *alone)]


# --- facts ------------------------------------------------------------------------------------------------------------


def version(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def torch_facts() -> tuple[dict[str, Any] | None, str]:
    """(what torch says of itself, why it says nothing). It is asked in a process of its own: a broken driver hangs."""
    said, failure = ask([sys.executable, "-c", _TORCH_FACTS], ASK_S)
    return (None, failure) if failure else (json.loads(said.splitlines()[-1]), "")


@functools.cache
def gpu_list() -> tuple[list[Gpu], str]:
    """(the GPUs of this machine, what is wrong with their driver)."""
    if shutil.which(_SMI[0]) is None:
        return [], ""
    said, failure = ask(_SMI, 30.0)
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return [Gpu(row[0], row[1], _mib(row[2]), _mib(row[3])) for row in rows if len(row) == 4], failure


def _mib(cell: str) -> int:
    return int(cell) if cell.isdecimal() else 0  # "[N/A]" on chips that share the machine's memory


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that processes may still take: of the machine, and of the control group that they are in."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    group = root / "sys/fs/cgroup"
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip().isdecimal():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def existing(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB or not count else f"{count / 2**20:,.0f} MiB"
