"""Two nodes on one machine, in two network namespaces, and the cable between them cut while they work."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray")

from counting_session import CountingSession

from ponder.cluster.processes import descendants, end_processes, is_alive
from ponder.cluster.runtime import Runtime
from ponder.recipe import ClusterSettings
from ponder.rollout.base import Request, Sampling

pytestmark = pytest.mark.slow

NAME = f"ponder{os.getpid()}"
HERE, THERE = "10.213.77.1", "10.213.77.2"
QUICK = {"period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "2", "initial_delay_ms": "1000"}


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, timeout=20)


@pytest.fixture
def cable() -> Iterator[str]:
    """The near end of a cable into another network namespace, called `NAME`."""
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: there is no `ip` (iproute2)")
    near, far = f"{NAME}a"[-15:], f"{NAME}b"[-15:]
    try:
        ip(f"netns add {NAME}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr.decode().strip()}")
    try:
        ip(f"link add {near} type veth peer name {far} netns {NAME}")
        ip(f"addr add {HERE}/24 dev {near}")
        ip(f"link set {near} up")
        for command in (f"addr add {THERE}/24 dev {far}", f"link set {far} up", "link set lo up"):
            ip(f"netns exec {NAME} ip {command}")
        yield near
    finally:
        ip(f"netns del {NAME}")


@pytest.fixture
def nodes(cable: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Ray on both sides: the address of its head, and the process of the far node."""
    import counting_session
    from ray import cloudpickle

    monkeypatch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))  # as Ray was imported here
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    environment = os.environ | {f"RAY_health_check_{key}": value for key, value in QUICK.items()}
    folders = [Path("/tmp") / f"{NAME}{side}" for side in "ab"]
    head = [*ray, "--head", f"--node-ip-address={HERE}", f"--port={port}", "--num-cpus=2"]
    far = ["ip", "netns", "exec", NAME, *ray, f"--address={HERE}:{port}", f"--node-ip-address={THERE}", "--num-cpus=1"]
    started = []
    try:
        for command, folder in (([*head, "--include-dashboard=false"], folders[0]), (far, folders[1])):
            folder.mkdir()
            argv = [*command, f"--temp-dir={folder}", "--object-store-memory=100000000"]
            with open(folder / "out", "w") as out:
                started.append(subprocess.Popen(argv, env=environment, stdout=out, stderr=out))
            await_port(port)
        cloudpickle.register_pickle_by_value(counting_session)
        yield f"{HERE}:{port}", started[1].pid
    finally:
        cloudpickle.unregister_pickle_by_value(counting_session)
        below = [pid for process in started for pid in descendants(process.pid)]
        for process in started:
            process.terminate()
        end_processes(below, 10)
        for process in started:
            process.wait(10)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def await_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((HERE, port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_a_worker_behind_a_cut_cable_is_replaced_and_ends_when_the_cable_is_mended(
    cable: str, nodes: tuple[str, int]
) -> None:
    from ponder.cluster.rollout_pool import RolloutPool

    address, far = nodes
    settings = ClusterSettings.model_validate(
        {
            "kind": "ray",
            "address": address,
            "rollout": {"workers": 2},
            "trainer": {"cpus": 1},  # the far node is waited for
            "deadlines": {"silent_s": 5, "start_s": 90},
        }
    )
    requests = [Request((1,), f"prompt {i}", 4) for i in range(4)]
    warnings: list[str] = []
    with Runtime(settings):
        pool = RolloutPool(functools.partial(CountingSession, step_s=0.05), settings, warnings.append)
        pool.publish(1, {"w": torch.ones(6)}, wait=True)
        unbroken = pool.generate(requests, Sampling(max_tokens=60), 7)
        behind = {int(worker.where.split()[1]) for worker in pool._workers} & set(descendants(far))
        assert len(behind) == 1
        cut = threading.Timer(0.5, ip, [f"link set {cable} down"])
        cut.start()
        heard: list[tuple[int, int]] = []
        again = pool.generate(requests, Sampling(max_tokens=60), 7, lambda f: heard.extend((r, s) for r, s, _ in f))
        cut.join()
        assert again == unbroken
        assert len(heard) == 16 == len(set(heard))
        assert any(f"pid {behind.copy().pop()} on" in warning for warning in warnings)
        ip(f"link set {cable} up")
        deadline = time.monotonic() + 60
        while any(map(is_alive, behind)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(map(is_alive, behind))
        pool.close()
