"""A driver whose Ray stands still is ended, and one that stood still itself is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ponder.cluster.processes import command_line, descendants, end_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

DRIVER = """
import sys, time
import numpy, ray
from ponder.cluster.runtime import Runtime
from ponder.recipe import ClusterSettings
limits = {"silent_s": 8}
with Runtime(ClusterSettings.model_validate({"kind": "ray", "rollout": {"cpus": 0}, "deadlines": limits})):
    print("ready", flush=True)
    for _ in range(int(sys.argv[1])):
        time.sleep(0.1)
        ray.put(numpy.zeros(1 << 20))  # waits for the node's daemon, without an end
print("left", flush=True)
"""


@contextmanager
def driver(turns: int) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", DRIVER, str(turns)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        below: list[int] = []
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            below = descendants(process.pid)
            yield process
        finally:
            process.kill()
            end_processes(below, 0)


@pytest.mark.parametrize("name", ["/raylet/raylet", pytest.param("/gcs/gcs_server", marks=pytest.mark.slow)])
def test_a_driver_does_not_wait_for_a_ray_that_has_stopped(name: str) -> None:
    with driver(1000) as process:
        (pid,) = (pid for pid in descendants(process.pid) if name in command_line(pid).partition(" ")[0])
        os.kill(pid, signal.SIGSTOP)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 5
        assert "has not answered for 8 s (cluster.deadlines.silent_s)" in said


@pytest.mark.slow
def test_a_driver_does_not_wait_for_a_ray_that_stops_while_it_starts(tmp_path: Path) -> None:
    starts = DRIVER.replace('"silent_s": 8', '"start_s": 8')
    said = tmp_path / "said"  # no pipe: what has stopped would hold it open
    with open(said, "wb") as log, subprocess.Popen([sys.executable, "-c", starts, "1"], stderr=log) as process:
        below: list[int] = []
        try:
            while not any("/gcs/gcs_server" in command_line(pid).partition(" ")[0] for pid in below):
                assert process.poll() is None
                below = descendants(process.pid)
            for pid in below:
                os.kill(pid, signal.SIGSTOP)
            assert process.wait(timeout=300) in (1, 5)
        finally:
            process.kill()
            end_processes(below, 0)
    assert re.search(r"Ray has not started within 8 s \(cluster\.deadlines\.start_s\)|Timeout", said.read_text())


@pytest.mark.slow
def test_a_driver_that_was_stopped_itself_goes_on() -> None:
    with driver(30) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(9.5)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=300)
        assert (process.returncode, said) == (0, "left\n")
