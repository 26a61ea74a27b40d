"""Ray is started, joined, refused and left behind clean, also by a driver that is killed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("ray")

from ponder.cluster.engines import Engines
from ponder.cluster.processes import command_line, descendants, is_alive
from ponder.cluster.runtime import Runtime, as_arrays, as_tensors, needs, refuse_idle_gpus, stored_models
from ponder.errors import InterruptedRunError, UsageError
from ponder.recipe import ClusterSettings, Recipe, load_recipe


def settings(**changes: Any) -> ClusterSettings:
    return ClusterSettings.model_validate({"kind": "ray", **changes})


def test_needs_are_what_all_workers_reserve_together() -> None:
    some = settings(rollout={"workers": 3, "cpus": 2, "gpus": 0.5}, trainer={"ranks": 4, "cpus": 0.5, "gpus": 1})
    assert needs(some) == (3 * 2 + 4 * 0.5, 3 * 0.5 + 4)
    assert needs(some, reward_models=2) == needs(some)
    separate = settings(**some.model_dump(exclude={"kind", "reward_models"}), reward_models="separate")
    assert needs(separate, reward_models=2) == (10.0, 5.5)
    judges = {"place": "separate", "gpus": 1, "cpus": 4}
    own = settings(**some.model_dump(exclude={"kind", "reward_models"}), reward_models=judges)
    assert needs(own, reward_models=2) == (16.0, 7.5)
    assert needs(own) == needs(some)


def test_the_object_store_holds_every_copy_that_is_kept() -> None:
    """What ranks start from, the weights in use, their successors, one on its way; then vLLM's, and reward models."""
    assert stored_models(settings()) == stored_models(settings(), reward_models=2) == 4
    assert stored_models(settings(rollout={"engine": "vllm"})) == 5
    assert stored_models(settings(rollout={"engine": "vllm"}, reward_models="separate"), reward_models=2) == 7


def test_ray_is_started_again_for_a_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str | int] = []

    class FakeRuntime:
        def __init__(self, cluster: ClusterSettings, weight_bytes: int, device: str) -> None:
            happened.append(weight_bytes)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            happened.append("end")

    monkeypatch.setattr("ponder.cluster.runtime.Runtime", FakeRuntime)
    monkeypatch.setattr("ponder.cluster.ray_backend.open_pool", lambda *arguments: MagicMock())
    stage = {"verb": "evaluate", "models": ["mini"], "tasks": {"countdown": {}}}
    engines = Engines(load_recipe({"name": "r", "cluster": "ray", "stages": {"table": stage}}), print)
    for numbers in (10, 5, 20):
        model = MagicMock()
        model.decoder.state_dict.return_value = {"w": torch.zeros(numbers)}
        engines.open(model)
    assert happened == [40, "end", 80]
    engines.close()
    assert happened == [40, "end", 80, "end"]


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "ponder\[ray\]"'):
        Runtime(settings())


@pytest.mark.parametrize("address", ["nowhere", "host:name"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"cluster\.address: .* host:port"):
        Runtime(settings(address=address))


def test_a_head_that_is_not_there_is_waited_for_until_the_deadline() -> None:
    with socket.socket() as mute:  # nobody else can listen there
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        with pytest.raises(UsageError, match=rf"nothing answers at 127\.0\.0\.1:{port} within 1\.5 s .*start_s"):
            Runtime(settings(address=f"127.0.0.1:{port}", deadlines={"start_s": 1.5}))


def test_too_few_gpus_are_refused_by_the_names_of_the_settings_and_nothing_stays() -> None:
    before = set(descendants(os.getpid()))
    with pytest.raises(UsageError, match=r"need 1002 GPUs, and Ray has \d+: lower cluster\.rollout\.workers"):
        Runtime(settings(rollout={"workers": 2, "gpus": 1}, trainer={"ranks": 1000, "cpus": 0, "gpus": 1}))
    left = set(descendants(os.getpid())) - before
    deadline = time.monotonic() + 60
    while any(map(is_alive, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [command_line(pid) for pid in left if is_alive(pid)] == []


def test_gpus_that_nobody_reserves_are_refused_unless_the_recipe_says_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)  # as in a program that has started it
    there = {"CPU": 8.0, "GPU": 8.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    refusal = r"Ray has 8 GPUs, and the recipe reserves none: set cluster\.rollout\.gpus and .* or `device: cpu`"
    with pytest.raises(UsageError, match=refusal):
        Runtime(settings(), device="auto")
    Runtime(settings(), device="cpu").close()
    Runtime(settings(trainer={"gpus": 1}), device="auto").close()
    there.pop("GPU")
    Runtime(settings(), device="auto").close()


def test_this_machines_gpus_are_looked_for_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(**settings: Any) -> Recipe:
        stage = {"verb": "reinforce", "tasks": {"countdown": {}}}
        return load_recipe({"name": "r", "cluster": "ray", **settings, "stages": {"zero": stage}})

    refuse_idle_gpus(recipe())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="Ray has 2 GPUs, and the recipe reserves none"):
        refuse_idle_gpus(recipe())
    refuse_idle_gpus(recipe(device="cpu"))
    refuse_idle_gpus(recipe(cluster="local"))
    refuse_idle_gpus(recipe(cluster={"kind": "ray", "address": "auto"}))  # Ray has other GPUs than this machine
    refuse_idle_gpus(recipe(cluster={"kind": "ray", "rollout": {"gpus": 1}}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_travel_as_arrays_with_every_bit(dtype: torch.dtype) -> None:
    weights = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(4, 2).to(dtype).T, "c": torch.tensor(1.5).to(dtype)}
    arrays = as_arrays(weights)
    for packed in arrays.values():
        packed[2].flags.writeable = False  # as Ray hands them out
    back = as_tensors(arrays)
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        assert back[name].dtype == dtype and torch.equal(back[name], weight)
    assert as_tensors({"a": weights["a"]})["a"] is weights["a"]


SUPERVISED = """
import sys
from ponder.cluster.supervise import supervise
sys.exit(supervise([sys.executable, "-c", sys.argv[1]], dict, 1, 10, print))
"""

DRIVER = """
import os
import numpy, ray
from pathlib import Path
from ponder.cluster.processes import descendants
from ponder.cluster.runtime import Runtime
from ponder.cluster.supervise import join_supervisor
from ponder.recipe import ClusterSettings

class Worker:
    def hold(self):
        return [ray.put(numpy.zeros(1 << 24, dtype=numpy.uint8))]

join_supervisor()
with Runtime(ClusterSettings.model_validate({"kind": "ray", "rollout": {"cpus": 0}})):
    worker = ray.remote(Worker).remote()
    held = ray.get(worker.hold.remote())
    with open("pids", "a") as file:
        print(*descendants(os.getpid()), file=file)
    if not Path("first").exists():
        Path("first").touch()
        os.kill(os.getpid(), 9)
Path("left").write_text(" ".join(os.listdir(os.environ["TMPDIR"])))
"""


def ray_memory() -> set[str]:
    """Shared memory by names that Ray gives; other programs of this machine have theirs there, too."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("plasma", "ray", "sem."))}


@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_processes_nor_memory_nor_files_stay_of_a_driver_that_ends_or_is_killed(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"pt{os.getpid()}"  # Ray's sockets need a short path
    folder.mkdir()
    before = ray_memory()
    argv = [sys.executable, "-c", SUPERVISED, DRIVER]
    try:
        done = subprocess.run(
            argv, cwd=tmp_path, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=1400
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "the run was killed by SIGKILL; it goes on where it was (start 2)\n"
        first, second = ([int(pid) for pid in line.split()] for line in (tmp_path / "pids").read_text().splitlines())
        assert len(first) >= 3 and len(second) >= 3  # the head, the node's daemon, the worker
        assert [command_line(pid) for pid in (*first, *second) if is_alive(pid)] == []
        assert (tmp_path / "left").read_text() == ""
        assert ray_memory() <= before
    finally:
        shutil.rmtree(folder)


def test_a_start_of_ray_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare exception where its processes miss their own deadlines, as they may on a busy machine."""
    import ray

    tries: list[str] = []

    def init(**arguments: object) -> None:
        tries.append(str(arguments["_temp_dir"]))
        raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(InterruptedRunError, match=r"in 3 tries \(The current node timed out during startup\.\)"):
        Runtime(settings())
    assert len(set(tries)) == 3
    assert not any(Path(folder).exists() for folder in tries)
