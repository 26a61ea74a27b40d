"""The doctor on one machine: each check sees what it is there for, says what to do, and exits as documented."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from ponder.cli import app
from ponder.doctor import Check, Needs, diagnose, machine, needs_of, problems, summary_rows
from ponder.doctor.check import ask
from ponder.doctor.machine import Gpu
from ponder.doctor.needs import Node, Share, spread, without_room
from ponder.errors import UsageError
from ponder.recipe import Recipe, load_recipe
from ponder.sandbox import Probe

H100 = Gpu("NVIDIA H100 80GB HBM3", "570.124.06", 81_559, 81_000)
CPU_TORCH = {"version": "2.13.0+cpu", "cuda": None, "available": False, "devices": 0}
CUDA_TORCH = {"version": "2.13.0+cu130", "cuda": "13.0", "available": True, "devices": 1}


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def recipe(**cluster: Any) -> Recipe:
    stage = {"verb": "reinforce", "tasks": {"countdown": {}}, "rewards": {"accuracy": 1, "helpful": "rm", "safe": "rm"}}
    stages = {"zero": stage, "rm": {"verb": "train_reward", "data": ["mini-world"], "rows": 10}}
    return load_recipe({"name": "r", "stages": stages, "cluster": {"kind": "ray", **cluster}})


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that the machine has these GPUs and this torch."""

    def pretend(gpus: list[Gpu], facts: dict[str, Any] | None = None, failure: str = "") -> None:
        monkeypatch.setattr(machine, "gpu_list", lambda: (gpus, failure))
        monkeypatch.setattr(machine, "torch_facts", lambda: (facts, "" if facts else "No module named 'torch'"))

    return pretend


# --- what a recipe needs ----------------------------------------------------------------------------------------------


def test_needs_follow_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"x" * 1000)
    written = recipe(rollout={"workers": 4, "gpus": 1, "cpus": 2}, trainer={"ranks": 2, "gpus": 0.75}).model_dump()
    written["stages"]["zero"]["model"] = str(tmp_path / "base")
    written["stages"]["rm"]["model"] = "Qwen/Qwen2.5-0.5B"
    needs = needs_of(load_recipe(written), tmp_path)
    assert needs.place == "ray here"
    assert needs.gpu_here
    assert needs.shares == (Share("cluster.trainer.ranks", 2, 0.75, 1), Share("cluster.rollout.workers", 4, 1, 2))
    assert needs.trained_bytes == (2000,)  # stored in two bytes a weight, trained in four
    assert needs.models == (tmp_path / "base",)
    assert needs.hub == ("Qwen/Qwen2.5-0.5B",)
    assert needs.vllm_python is None
    joined = needs_of(recipe(address="auto", rollout={"engine": "vllm", "gpus": 1}), tmp_path)
    assert (joined.place, joined.gpu_here) == ("ray cluster", False)  # another node may have the GPU
    assert joined.vllm_python == ".venv-vllm/bin/python"
    assert needs_of(recipe(), tmp_path, "10.0.0.1:6379").place == "ray cluster"
    assert needs_of(recipe(kind="local"), tmp_path).shares == ()


def test_reward_models_of_their_own_take_what_the_recipe_says() -> None:
    # two rewards of one model
    assert Share("cluster.reward_models", 1, 0, 1) in needs_of(recipe(reward_models="separate"), Path()).shares
    judges = {"place": "separate", "gpus": 1, "cpus": 8}
    assert Share("cluster.reward_models", 1, 1, 8) in needs_of(recipe(reward_models=judges), Path()).shares
    assert needs_of(recipe(reward_models=judges), Path()).gpu_here
    assert len(needs_of(recipe(reward_models="shared"), Path()).shares) == 2


@pytest.mark.parametrize(
    ("nodes", "left_out"),
    [
        ([Node(8, 32)], None),
        ([Node(4, 32), Node(4, 32)], None),
        ([Node(7, 32)], "workers"),
        ([Node(6, 64), Node(3, 64)], None),
        ([Node(3, 64), Node(3, 64), Node(1, 64), Node(1, 64)], "ranks"),  # eight GPUs, but no third node has two
        ([Node(8, 7)], "workers"),  # cores are short
    ],
)
def test_processes_are_placed_whole(nodes: list[Node], left_out: str | None) -> None:
    shares = [Share("workers", 2, 1, 1), Share("ranks", 3, 2, 2)]
    found = without_room(shares, nodes)
    assert (found and found.setting) == left_out


def test_processes_are_spread_over_as_few_nodes_as_they_need() -> None:
    shares = [Share("workers", 5, 1, 1.5), Share("ranks", 2, 4, 2)]
    assert spread(shares, Node(8, 64)) == [Node(8, 4), Node(5, 8)]
    assert spread(shares, Node(3, 64)) is None
    assert spread([Share("workers", 4, 0, 1)], Node(0, 2)) == [Node(0, 2), Node(0, 2)]


# --- one machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "facts", "gpu_here", "state", "said"),
    [
        ([], CPU_TORCH, False, "ok", "2.13.0+cpu, built for the CPU"),
        ([], None, False, "problem", "cannot be imported: No module named 'torch'"),
        ([H100], CPU_TORCH, False, "warning", "beside a GPU"),
        ([H100], CPU_TORCH, True, "problem", "beside a GPU"),
        ([H100], CUDA_TORCH, True, "ok", "built for CUDA 13.0"),
        ([H100], {**CUDA_TORCH, "available": False}, False, "problem", "sees no GPU with driver 570.124.06"),
        ([], {**CUDA_TORCH, "available": False}, False, "warning", "without a GPU"),
        ([], {**CPU_TORCH, "version": "2.8.1"}, False, "problem", "2.8.1"),
    ],
)
def test_torch_fits_the_machine(
    has: Any, gpus: list[Gpu], facts: dict[str, Any] | None, gpu_here: bool, state: str, said: str
) -> None:
    has(gpus, facts)
    check = machine.torch(Needs(gpu_here=gpu_here))
    assert check.state == state
    assert said in check.found
    assert bool(check.advice) == (state != "ok")


def test_a_build_without_cuda_is_of_no_use_on_a_node_whose_gpus_are_reserved(has: Any) -> None:
    has([H100], CPU_TORCH)
    assert machine.torch(Needs(place="ray cluster", shares=(Share("w", 1, 1, 1),))).state == "problem"
    assert machine.torch(Needs(place="ray cluster", shares=(Share("w", 1, 0, 1),))).state == "warning"


def test_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    rows = "NVIDIA H100 80GB HBM3, 570.124.06, 81559, 81000\\nNVIDIA H100 80GB HBM3, 570.124.06, 81559, 1000\\n"
    smi.write_text(f"#!/bin/sh\nprintf '{rows}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    read = machine.gpu_list.__wrapped__
    assert read() == ([H100, Gpu(H100.name, H100.driver, 81_559, 1000)], "")
    monkeypatch.setattr(machine, "gpu_list", read)
    check = machine.devices(Needs())
    assert (check.state, check.found) == ("warning", "2 x NVIDIA H100 80GB HBM3, GiB free of 80: 79, 1")
    assert machine.driver(Needs()).found == "570.124.06"
    smi.write_text("#!/bin/sh\necho 'Driver/library version mismatch' >&2; exit 18\n")
    assert (machine.driver(Needs()).state, machine.driver(Needs()).found) == (
        "problem",
        "nvidia-smi says: Driver/library version mismatch",
    )


def test_a_missing_gpu_is_a_problem_only_where_one_is_asked_for(has: Any) -> None:
    has([])
    assert machine.devices(Needs()).state == "ok"
    assert machine.devices(Needs(gpu_here=True)).state == "problem"
    has([H100])
    assert machine.devices(Needs(gpu_here=True)).state == "ok"


def test_vllm_must_start(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho INFO loading\necho 0.33.0\n")
    python.chmod(0o755)
    assert machine.engine(Needs(vllm_python=str(python))).found == f"vLLM 0.33.0, {python}"
    python.write_text("#!/bin/sh\necho \"No module named 'vllm'\" >&2; exit 1\n")
    failed = machine.engine(Needs(vllm_python=str(python)))
    assert (failed.state, "No module named 'vllm'" in failed.found) == ("problem", True)
    assert "cluster.rollout.vllm.python" in failed.advice
    assert machine.engine(Needs(vllm_python=str(tmp_path / "none"))).state == "problem"
    assert machine.engine(Needs()).found == "native"


def test_ray_must_be_there_where_the_recipe_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda package: None)
    assert machine.ray(Needs()).state == "ok"
    assert machine.ray(Needs(place="ray here")).advice == 'pip install "ponder[ray]"'


@pytest.mark.parametrize(
    ("free_gib", "state"), [(100, "ok"), (7.5, "warning"), (0.2, "problem")], ids=["enough", "tight", "full"]
)
def test_disks(free_gib: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Disk(0, 0, int(free_gib * machine.GIB)))
    needs = Needs(tmp_path / "runs" / "r", "ray here", trained_bytes=(machine.GIB,))
    assert machine.run_disk(needs).state == state  # seven copies of a GiB, and one GiB to spare
    assert str(tmp_path) in machine.run_disk(needs).found
    assert machine.temporary_disk(needs).state == {"problem": "warning"}.get(state, "ok")
    assert machine.shared_memory(needs).state == {"problem": "warning"}.get(state, "ok")


def test_a_run_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert machine.run_disk(Needs(tmp_path)).advice == "choose another folder with --run"


def test_memory_is_that_of_the_machine_and_its_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert machine.available_memory(tmp_path) == 5000 * 1024
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert machine.available_memory(tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("4000\n")
    assert machine.available_memory(tmp_path) == 3000
    monkeypatch.setattr(machine, "available_memory", lambda: 3 * machine.GIB)
    assert machine.memory(Needs(trained_bytes=(machine.GIB,))).state == "warning"  # four copies
    assert machine.memory(Needs(trained_bytes=(machine.GIB // 2,))).state == "ok"


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (1024, 4096))
    assert machine.open_files(Needs()).state == "ok"
    check = machine.open_files(Needs(place="ray here"))
    assert (check.state, check.advice) == ("warning", "run `ulimit -n 65536` before")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert machine.open_files(Needs(place="ray here")).found == "no limit"


def test_a_port_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.ports(Needs()).state == "ok"

    def refuse(address: Any) -> socket.socket:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(machine.socket, "create_server", refuse)
    assert machine.ports(Needs()).found == "no port can be opened: Permission denied"


def test_a_missing_sandbox_is_a_problem_where_programs_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe", lambda: Probe(None, "bubblewrap is not installed"))
    assert machine.sandbox(Needs()).state == "warning"
    assert machine.sandbox(Needs(runs_programs=True)).state == "problem"


def test_models_of_the_hub_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = machine.hub(Needs(hub=("Qwen/Qwen2.5-0.5B",)))
    assert check.state == "warning"
    assert "Qwen/Qwen2.5-0.5B" in check.found
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert machine.hub(Needs(hub=("Qwen/Qwen2.5-0.5B",))).state == "ok"


def test_ray_started_here_needs_the_gpus_and_may_share_the_cores(has: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    shares = (Share("cluster.rollout.workers", 3, 0, 1),)
    has([])
    assert machine.room_here(Needs(place="ray here", shares=shares)).state == "warning"
    check = machine.room_here(Needs(place="ray here", shares=(Share("cluster.rollout.workers", 3, 0.5, 0.1),)))
    assert (check.state, "lower cluster.rollout.workers" in check.advice) == ("problem", True)
    has([H100, H100])
    assert machine.room_here(Needs(place="ray here", shares=(Share("w", 3, 0.5, 0.1),))).state == "ok"


def test_gpus_that_a_recipe_on_ray_leaves_idle_are_a_problem(has: Any, tmp_path: Path) -> None:
    idle = needs_of(recipe(), tmp_path)
    has([H100, H100])
    check = machine.room_here(idle)
    assert (check.state, "2 GPUs" in check.found) == ("problem", True)
    assert check.advice == "set cluster.rollout.gpus and cluster.trainer.gpus, or `device: cpu` to leave GPUs alone"
    assert machine.resources(idle, [Node(0, 4), Node(8, 4)], "the cluster has").state == "problem"
    assert machine.resources(idle, [Node(0, 4), Node(0, 4)], "the cluster has").state == "ok"
    meant = recipe().model_copy(update={"device": "cpu"})
    assert machine.resources(needs_of(meant, tmp_path), [Node(8, 4)], "the cluster has").state == "ok"
    reserved = needs_of(recipe(rollout={"gpus": 1}, trainer={"gpus": 1}), tmp_path)
    assert machine.resources(reserved, [Node(8, 4)], "the cluster has").state == "ok"


def test_a_program_that_hangs_is_killed() -> None:
    assert ask(["sleep", "60"], 0.1) == ("", "no answer within 0.1 s")
    assert ask(["/no/such/program"], 1) == ("", "No such file or directory")
    assert ask(["sh", "-c", "exit 7"], 5) == ("", "exit status 7")
    assert ask(["echo", " hello "], 5) == ("hello", "")


# --- the command ------------------------------------------------------------------------------------------------------


def test_this_machine_is_looked_at_for_real(tmp_path: Path) -> None:
    checks = diagnose(Needs(tmp_path / "runs"))
    assert {check.name: check.state for check in checks}["torch"] != "problem"
    assert len({check.name for check in checks}) == len(checks) == 16
    assert list(tmp_path.iterdir()) == []


def test_nodes_are_counted_of_a_cluster_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nodes counts the nodes of a Ray cluster: give its --address"):
        diagnose(Needs(tmp_path), num_nodes=3)


def test_the_command_prints_a_line_a_check_and_exits_3_at_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = [Check("torch", "ok", "2.13.0"), Check("sandbox", "warning", "none works", "see docs/sandbox.md")]
    seen: list[Any] = []

    def fake(*arguments: Any) -> list[Check]:
        seen.append(arguments)
        return said

    monkeypatch.setattr("ponder.cli.recipes.diagnose", fake)
    result = CliRunner().invoke(app, ["doctor", "--run", "here"])
    assert (result.exit_code, result.stdout) == (
        0,
        "ok       torch: 2.13.0\nwarning  sandbox: none works\n         -> see docs/sandbox.md\n",
    )
    assert seen[-1][0] == Needs(Path("here"))
    said.append(Check("network", "problem", "a cannot reach b (timed out)", "open the ports", "a"))
    arguments = ["doctor", "r1-zero-mini", "--set", "cluster=ray", "--address", "auto", "--nodes", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert json.loads(result.stdout)[2] == {
        "name": "network",
        "state": "problem",
        "found": "a cannot reach b (timed out)",
        "advice": "open the ports",
        "node": "a",
    }
    assert "1 of 3 checks found what would stop a run" in result.stderr
    needs, address, nodes, deadline_s = seen[-1]
    assert (needs.place, address, nodes, deadline_s) == ("ray cluster", "auto", 2, 600.0)
    assert CliRunner().invoke(app, ["doctor", "no-such-recipe"]).exit_code == 2
    assert [check.name for check in problems(said)] == ["network"]


def test_programs_of_a_benchmark_ask_for_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Needs] = []
    monkeypatch.setattr("ponder.cli.recipes.diagnose", lambda needs, *rest: seen.append(needs) or [])
    for benchmark, runs_programs in (("mbpp", True), ("math500", False)):
        stage = {"verb": "evaluate", "models": ["mini"], "benchmarks": [benchmark]}
        (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "stages": {"table": stage}}))
        assert CliRunner().invoke(app, ["doctor", str(tmp_path / "r.yaml")]).exit_code == 0
        assert seen[-1].runs_programs is runs_programs


def test_nodes_that_say_the_same_share_a_line() -> None:
    same = [Check("torch", "ok", "2.13.0", node=node) for node in ("", "a", "b", "c")]
    odd = [Check("ray", "ok", "2.60.0", node=node) for node in ("a", "b")] + [Check("ray", "ok", "2.59.0", node="c")]
    rows = [(where, check.name, check.found) for where, check in summary_rows([*same, *odd])]
    assert rows == [
        ("", "torch", "2.13.0"),
        ("all nodes", "torch", "2.13.0"),
        ("a, b", "ray", "2.60.0"),
        ("c", "ray", "2.59.0"),
    ]
