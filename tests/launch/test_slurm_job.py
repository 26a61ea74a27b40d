"""The Slurm job for real, with programs of Slurm, Ray and Ponder that only write down what they are asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from ponder.launch import write_launch
from ponder.recipe import load_recipe

FAKES = {
    "srun": """
        line="srun $*"
        while [[ $1 == --* ]]; do shift; done
        [[ $1 != ray ]] || echo "$line" >>"$LOG"
        exec "$@"
    """,
    "scontrol": """
        [[ $1 != show ]] || { printf 'n1\\nn2\\n'; exit; }
        echo "scontrol $*" >>"$LOG"
    """,
    "hostname": "echo 127.0.0.1",
    "ponder": """
        trap 'echo "ponder saves" >>"$LOG"; sleep 0.3; kill $(jobs -p); exit 5' TERM
        echo "ponder $*" >>"$LOG"
        until (($(grep -c ^ray "$LOG") == 2)); do sleep 0.05; done
        [[ $1 != doctor ]] || exit ${DOCTOR:-0}
        [[ ${RUN:-wait} != wait ]] || { sleep 600 & wait; }
        exit $RUN
    """,
}
FAKE_RAY = """
import os, signal, socket, sys, time

def say(line):
    with open(os.environ["LOG"], "a") as log:
        log.write(line + "\\n")

def end(*signal):
    say("ray ends")
    sys.exit()

signal.signal(signal.SIGTERM, end)
say("ray " + " ".join(sys.argv[1:]))
if os.environ.get("DEAF") == "ends":
    sys.exit(1)
if "--head" in sys.argv and "DEAF" not in os.environ:
    server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
time.sleep(600)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def job(tmp_path: Path) -> Generator[Start, None, None]:
    """Starts the job of a recipe of two nodes; keywords are environment variables of the programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    (programs / "ray").write_text(f"#!{sys.executable}\n{FAKE_RAY}")
    (programs / "ray").chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rollout = {"engine": "vllm", "workers": 2, "gpus": 8, "vllm": {"tensor_parallel": 8}}
    cluster = {"kind": "ray", "rollout": rollout, "deadlines": {"start_s": 300}}
    stage = {"verb": "reinforce", "tasks": {"countdown": {}}}
    recipe = load_recipe({"name": "zero", "stages": {"zero": stage}, "cluster": cluster})
    write_launch("slurm", recipe, tmp_path / "job", tmp_path / "run")
    script = tmp_path / "job" / "job.sh"
    script.write_text(script.read_text().replace("port=$((20000 + SLURM_JOB_ID % 20000))", f"port={port}"))
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "PORT": str(port),
        "PONDER_ENVIRONMENT": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": "4",
    }
    jobs: list[subprocess.Popen[str]] = []

    def start(start_s: int = 300, **variables: str) -> subprocess.Popen[str]:
        script.write_text(script.read_text().replace("start_s=300 ", f"start_s={start_s} "))
        output: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        # a session of its own, so that nothing outlives the test
        command = ["bash", str(script)]
        jobs.append(subprocess.Popen(command, env=environment | variables, start_new_session=True, **output))
        return jobs[-1]

    yield start
    for one in jobs:
        for pid in left_behind(one):
            os.kill(pid, signal.SIGKILL)
        one.communicate()


def log(tmp_path: Path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(line: str, tmp_path: Path) -> None:
    ends = time.monotonic() + 120
    while not any(entry.startswith(line) for entry in log(tmp_path)):
        assert time.monotonic() < ends, log(tmp_path)
        time.sleep(0.02)


def left_behind(one: subprocess.Popen[str]) -> list[int]:
    """Processes of the job that run still."""
    said = subprocess.run(["ps", "-s", str(one.pid), "-o", "pid=,stat="], capture_output=True, text=True).stdout
    processes = [line.split() for line in said.splitlines()]
    return [int(pid) for pid, state in processes if not state.startswith("Z")]


def test_ray_then_the_doctor_then_the_run_and_nothing_stays(job: Start, tmp_path: Path) -> None:
    one = job(RUN="0")
    assert one.wait(300) == 0
    lines = log(tmp_path)
    head, workers = (line for line in lines if line.startswith("srun"))
    address = f"127.0.0.1:{head.partition('--port=')[2].split()[0]}"
    assert head.startswith(
        "srun --overlap --cpus-per-task=4 --nodes=1 --ntasks=1 --nodelist=n1 ray start --head --block"
    )
    assert "--num-cpus=2 --num-gpus=8" in head
    assert f"--nodes=1 --ntasks=1 --exclude=n1 ray start --block --address={address}" in workers
    recipe, run = tmp_path / "job" / "recipe.yaml", tmp_path / "run"
    assert [line for line in lines if line.startswith("ponder")] == [
        f"ponder doctor {recipe} --run {run} --address {address} --nodes 2",
        f"ponder run {recipe} --run {run} --set cluster.address={address}",
    ]
    assert lines.index(head) == 0
    assert lines[-2:] == ["ray ends", "ray ends"]
    assert not any(line.startswith("scontrol") for line in lines)
    assert left_behind(one) == []


def test_sigterm_reaches_the_run_which_saves_before_ray_ends_and_the_job_comes_back(job: Start, tmp_path: Path) -> None:
    one = job()
    wait_for("ponder run", tmp_path)
    one.send_signal(signal.SIGTERM)
    assert one.wait(300) == 5
    assert log(tmp_path)[-4:] == ["ponder saves", "ray ends", "ray ends", f"scontrol requeue {os.getpid()}"]
    assert left_behind(one) == []


def test_a_job_that_was_interrupted_too_often_does_not_come_back(job: Start, tmp_path: Path) -> None:
    one = job(RUN="5", SLURM_RESTART_COUNT="100")
    assert one.wait(300) == 5
    assert log(tmp_path)[-1] == "ray ends"


def test_what_the_doctor_finds_ends_the_job(job: Start, tmp_path: Path) -> None:
    one = job(DOCTOR="3")
    assert one.wait(300) == 3
    assert not any(line.startswith("ponder run") for line in log(tmp_path))
    assert log(tmp_path)[-1] == "ray ends"


@pytest.mark.parametrize(
    ("how", "said"), [("listens never", "did not listen within 1 s"), ("ends", "ray start ended on n1")]
)
def test_a_head_that_does_not_come_up_ends_the_job(job: Start, tmp_path: Path, how: str, said: str) -> None:
    one = job(start_s=1, DEAF=how)
    assert one.wait(300) == 1
    assert one.stderr is not None
    assert said in one.stderr.read()
    assert not any(line.startswith("ponder") for line in log(tmp_path))
    assert left_behind(one) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_doctor_looks_at_a_real_ray_of_two_nodes(job: Start, tmp_path: Path, repository: Path) -> None:
    """Half a minute and 2 GiB; the two nodes are this machine, and there is no GPU on them for the recipe."""
    pytest.importorskip("ray")
    (tmp_path / "bin" / "ray").unlink()
    doctor = f'[[ $1 == doctor ]] && exec {sys.executable} -m ponder "$@" --json >"$LOG"'
    (tmp_path / "bin" / "ponder").write_text(f"#!/bin/bash\n{doctor}\n")
    script = tmp_path / "job" / "job.sh"
    script.write_text(script.read_text().replace("num-gpus=8", "num-gpus=0"))
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    one = job(PATH=path, PYTHONPATH=str(repository))
    assert one.wait(540) == 3
    checks = json.loads("\n".join(log(tmp_path)))
    found = {check["name"]: check for check in checks if not check["node"]}
    for name in ("cluster", "versions", "clocks", "network", "shared run folder"):
        assert (name, found[name]["state"]) == (name, "ok")
    assert found["cluster"]["found"] == "2 nodes"
    assert found["resources"]["state"] == "problem"
    assert found["resources"]["advice"].startswith("lower cluster.rollout.workers")
    assert len({check["node"] for check in checks if check["node"]}) == 2
    assert left_behind(one) == []
