"""Trainers on Ray: the same updates as in one process, and one clear error when a rank dies, stops or stalls."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray")

from ponder.cluster.processes import is_alive
from ponder.cluster.runtime import Runtime, as_tensors
from ponder.cluster.trainer_group import TrainerGroup
from ponder.errors import BrokenInputError, LostWorkersError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.recipe import AlgorithmSettings, ClusterSettings, OptimizerSettings
from ponder.training.packing import Example
from ponder.training.trainer import LocalTrainer, TrainerSettings
from ponder.training.update import Trajectory

OF = TrainerSettings(
    OptimizerSettings(lr=1e-3),
    total_steps=10,
    budget=60,
    algorithm=AlgorithmSettings.model_validate({"kl": {"beta": 0.1}, "importance": {"mode": "none"}}),
    max_tokens=20,
)


def cluster(ranks: int = 2, **deadlines: float) -> ClusterSettings:
    limits = {"start_s": 600.0, "silent_s": 60.0, "update_s": 300.0} | deadlines
    return ClusterSettings.model_validate(
        {"kind": "ray", "rollout": {"cpus": 0}, "trainer": {"ranks": ranks, "cpus": 0.5}, "deadlines": limits}
    )


def make_model() -> Decoder:
    decoder = Decoder(
        DecoderConfig(
            family="llama",
            vocab_size=23,
            hidden_size=16,
            intermediate_size=24,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=4,
            max_positions=64,
            initializer_range=0.3,
        )
    )
    decoder.initialise(0)
    return decoder


def make_trajectories(times: int = 1) -> list[Trajectory]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for group in range(4 * times):
        prompt = (group % 20, 1, 2)
        for length, advantage in ((5, 1.0), (17, -0.5), (9, -0.5)):
            ids = tuple(torch.randint(23, (length,), generator=generator).tolist())
            found.append(Trajectory(Example(prompt, ids), [-3.0] * length, advantage))
    return found


@pytest.fixture(scope="module", autouse=True)
def ray_runs() -> Iterator[None]:
    with Runtime(cluster()):
        yield


@pytest.fixture
def make_group() -> Iterator[Callable[..., TrainerGroup]]:
    groups = []

    def make(**deadlines: float) -> TrainerGroup:
        model = make_model()
        groups.append(TrainerGroup(model.config, model.state_dict(), OF, cluster(**deadlines), keep_reference=True))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def pids(group: TrainerGroup) -> list[int]:
    return [where[0] for where in group._where if where is not None]


def gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_alive, processes))


def test_two_ranks_do_what_one_process_does_and_go_on_from_a_checkpoint(
    make_group: Callable[..., TrainerGroup], tmp_path: Path
) -> None:
    import ray

    group, local = make_group(), LocalTrainer(make_model(), OF, keep_reference=True)
    trajectories = make_trajectories()
    examples = [t.example for t in trajectories]
    for trainer in (group, local):
        assert trainer.version == 0
        assert trainer.lr == 1e-3
    for one, expected in zip(
        [*group.policy_updates([trajectories, trajectories]), group.supervised_update(examples)],
        [*local.policy_updates([trajectories, trajectories]), local.supervised_update(examples)],
        strict=True,
    ):
        assert one.loss == pytest.approx(expected.loss, abs=1e-5)
        assert one.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert group.version == local.version == 1
    for mine, theirs in zip(
        group.logprobs(trajectories, "policy"), local.logprobs(trajectories, "policy"), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    published = as_tensors(ray.get(group.publish_ref()))
    weights, expected_weights = group.weights(), local.weights()
    assert weights.keys() == expected_weights.keys() == published.keys()
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=3e-5)
        assert torch.equal(published[name], weights[name])

    # an unbroken run, and one that loses all its processes behind a checkpoint
    state = group.save_state(tmp_path, "trainer-1")
    group.refresh_reference()
    group.policy_updates([trajectories])
    unbroken = {name: weight.clone() for name, weight in group.weights().items()}
    before = pids(group)
    group.restart()
    assert gone(before)
    assert group.version == 0
    with pytest.raises(BrokenInputError, match="is missing"):
        group.load_state(tmp_path / "elsewhere", state)
    group.load_state(tmp_path, state)  # an error that all ranks have told costs them nothing
    assert group.version == 1
    group.refresh_reference()
    group.policy_updates([trajectories])
    assert group.version == 2
    assert all(torch.equal(weight, unbroken[name]) for name, weight in group.weights().items())


def test_ranks_are_packed_and_nothing_stays_reserved(make_group: Callable[..., TrainerGroup]) -> None:
    import ray

    def places() -> list[str]:
        return [found["strategy"] for found in ray.util.placement_group_table().values() if found["state"] != "REMOVED"]

    group = make_group()
    assert places() == ["PACK"]
    reserved = ray.available_resources().get("CPU", 0.0)
    group.restart()
    assert places() == ["PACK"]
    group.close()
    assert places() == []
    deadline = time.monotonic() + 60
    while (free := ray.available_resources().get("CPU", 0.0)) < reserved + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert free == ray.cluster_resources()["CPU"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_in_an_update_ends_all(
    make_group: Callable[..., TrainerGroup], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the other rank may say that it has lost this one long before Ray does
    monkeypatch.setattr("ponder.cluster.trainer_group._GRACE_S", 60.0)
    group = make_group()
    before = pids(group)
    killer = threading.Timer(0.3, os.kill, (before[rank], signal.SIGKILL))
    parts = [make_trajectories(40)] * 50
    killer.start()
    with pytest.raises(LostWorkersError) as raised:
        group.policy_updates(parts)
    text = rf"trainer rank {rank} of 2 \(pid {before[rank]} on .*\) died while the driver waited for an update: .+"
    assert re.fullmatch(text, str(raised.value))
    assert gone(before)
    with pytest.raises(LostWorkersError, match="gone"):
        group.policy_updates(parts)


def test_weights_that_died_with_their_rank_are_a_lost_worker(
    make_group: Callable[..., TrainerGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.exceptions import RayError

    group = make_group()
    before = pids(group)
    reference = group.publish_ref()
    monkeypatch.setattr(group, "publish_ref", lambda: reference)
    os.kill(before[0], signal.SIGKILL)
    with contextlib.suppress(RayError):
        while True:  # until Ray has noticed
            ray.get(reference, timeout=60)
            time.sleep(0.1)
    with pytest.raises(LostWorkersError, match=r"rank 0 of 2 .* died while the driver waited for the weights: .+"):
        group.weights()
    assert gone(before)


def test_weights_have_a_deadline(make_group: Callable[..., TrainerGroup], monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    group = make_group(weights_s=1.0)
    before = pids(group)
    never = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    monkeypatch.setattr(group, "publish_ref", lambda: never)
    try:
        with pytest.raises(LostWorkersError, match=r"has not answered for 1 s while the driver waited for the weights"):
            group.weights()
        assert gone(before)
    finally:
        ray.cancel(never, force=True)


def test_a_rank_that_is_stopped_is_found_by_its_silence(make_group: Callable[..., TrainerGroup]) -> None:
    group = make_group(silent_s=5.0)
    before = pids(group)
    os.kill(before[1], signal.SIGSTOP)
    with pytest.raises(
        LostWorkersError, match=r"trainer rank 1 of 2 .* was silent for 5 s \(silent_s\) while .* update"
    ):
        group.policy_updates([make_trajectories()])
    assert gone(before)


def test_ranks_that_are_late_are_ended(make_group: Callable[..., TrainerGroup]) -> None:
    group = make_group()
    before = pids(group)
    group._deadlines = group._deadlines.model_copy(update={"update_s": 0.5})
    with pytest.raises(LostWorkersError, match=r"has not answered for 0\.5 s while the driver waited for an update"):
        group.policy_updates([make_trajectories(40)] * 50)
    assert gone(before)


def test_a_defect_in_one_rank_does_not_leave_the_others_waiting(make_group: Callable[..., TrainerGroup]) -> None:
    group = make_group()
    before = pids(group)
    calls: list[Any] = [actor.call.remote("logprobs", (make_trajectories(), "policy")) for actor in group._actors]
    calls[1] = group._actors[1].call.remote("no_such_method", ())
    with pytest.raises(RuntimeError, match=r"trainer rank 1 of 2 [^$]*no_such_method"):
        group._gather(calls, "nothing", 60)
    assert gone(before)
