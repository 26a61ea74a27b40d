"""The doctor between nodes: what differs, what cannot be reached or seen, and nodes that do not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ponder.doctor import Needs, diagnose
from ponder.doctor import cluster as cluster_module
from ponder.doctor.check import Check
from ponder.doctor.cluster import Cluster, clocks, look, network, same_versions
from ponder.doctor.needs import Node, Share
from ponder.doctor.nodes import NodeProbe

SAME = {"python": "3.12.1", "ray": "2.60.0", "numpy": "2.0.0"}


class HereCluster(Cluster):
    """Probes in this process, without Ray; a node whose method is `None` does not answer it."""

    def ask(self, method: str, arguments: Callable[[str], tuple[Any, ...]] = lambda node: ()) -> dict[str, Any]:
        answers = {}
        for node, probe in list(self.probes.items()):
            call = getattr(probe, method)
            if call is None:
                self._lose(node, f"did not answer `{method}`")
            else:
                answers[node] = call(*arguments(node))
        return answers


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two nodes, both of them this machine, which all look alike."""
    monkeypatch.setattr(NodeProbe, "checks", lambda self, needs: [Check("torch", "ok", "2.13.0")])
    monkeypatch.setattr(cluster_module, "_ask_one", lambda cluster, node, method: time.time())
    return {"127.0.0.1 (a)": NodeProbe(), "127.0.0.1 (b)": NodeProbe()}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def looked_at(probes: dict[str, Any], needs: Needs, gpus: float = 0) -> dict[str, Check]:
    cluster = HereCluster(probes, {node: Node(gpus, 4) for node in probes})
    return by_name([*look(cluster, needs), *cluster.lost])


def test_a_cluster_in_order(probes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    shares = (Share("cluster.rollout.workers", 2, 0, 3),)
    found = looked_at(probes, Needs(tmp_path / "run", "ray cluster", shares=shares, models=(tmp_path / "base",)))
    assert {check.state for check in found.values()} == {"ok"}
    assert set(found) == {"torch", "versions", "resources", "clocks", "network", "shared run folder", "model"}
    assert [path.name for path in tmp_path.iterdir()] == ["base"]  # nothing stays behind


def test_too_few_gpus_name_the_setting_to_lower(probes: dict[str, Any], tmp_path: Path) -> None:
    shares = (Share("cluster.trainer.ranks", 2, 1, 1), Share("cluster.rollout.workers", 3, 1, 1))
    check = looked_at(probes, Needs(tmp_path, "ray cluster", shares=shares), gpus=2)["resources"]
    assert check.state == "problem"
    assert "the cluster has 4 GPUs" in check.found
    assert check.advice.startswith("lower cluster.rollout.workers")


def test_a_folder_and_a_model_that_one_node_does_not_see(probes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    blind = probes["127.0.0.1 (b)"]
    blind.read = lambda path: "FileNotFoundError: no such file"
    blind.listings = lambda paths: dict.fromkeys(paths, "missing")
    found = looked_at(probes, Needs(tmp_path, "ray cluster", models=(tmp_path / "base",)))
    assert found["shared run folder"].state == found["model"].state == "problem"
    assert "127.0.0.1 (b)" in found["shared run folder"].found
    assert "(a)" not in found["model"].found


def test_a_node_that_cannot_be_reached_and_one_that_does_not_answer(probes: dict[str, Any], tmp_path: Path) -> None:
    probes["127.0.0.1 (a)"].listen = lambda address, token: 1  # nothing listens there
    probes["127.0.0.1 (c)"] = NodeProbe()
    probes["127.0.0.1 (c)"].checks = None
    found = looked_at(probes, Needs(tmp_path, "ray cluster"))
    assert found["network"].state == "problem"
    assert found["network"].found == "127.0.0.1 (b) cannot reach 127.0.0.1 (a) (Connection refused)"
    assert (found["node"].state, found["node"].node) == ("problem", "127.0.0.1 (c)")
    assert found["shared run folder"].state == "ok"  # the others were looked at all the same


def test_a_stranger_on_the_port_is_no_node(probes: dict[str, Any]) -> None:
    one, other = probes.values()
    port = one.listen("127.0.0.1", "a token")
    assert other.unreachable({"one": ("127.0.0.1", port)}, "a token") == {}
    assert other.unreachable({"one": ("127.0.0.1", port)}, "another") == {"one": "another program answers there"}


def test_versions_differ() -> None:
    assert same_versions({"a": SAME, "b": SAME}).state == "ok"
    check = same_versions({"a": SAME, "b": SAME, "c": {**SAME, "numpy": "1.9.0"}})
    assert (check.state, check.found) == ("warning", "numpy is 2.0.0, but 1.9.0 on c")
    check = same_versions({"a": {**SAME, "ray": "2.59.0"}, "b": SAME, "c": {**SAME, "numpy": "1.9.0"}})
    assert (check.state, check.found) == ("problem", "ray is 2.60.0, but 2.59.0 on a; numpy is 2.0.0, but 1.9.0 on c")


def test_clocks_differ() -> None:
    assert clocks({"a": (0.9, 0.01), "b": (-0.9, 0.01)}).state == "ok"
    assert clocks({"a": (3.0, 2.5)}).state == "ok"  # a slow round trip does not tell
    check = clocks({"a": (-1.5, 0.01), "b": (0.0, 0.01)})
    assert (check.state, check.found) == ("warning", "off from this machine's: a by -1.5 s")


def test_an_offset_is_measured_from_the_middle_of_the_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def answer(cluster: Cluster, node: str, method: str) -> float:
        now[0] += 0.4
        return now[0] - 0.2 + 7.0  # taken half way, by a clock that is 7 s ahead

    monkeypatch.setattr(cluster_module, "_ask_one", answer)
    ((offset, unsure),) = cluster_module._offsets(Cluster({"a": None}, {})).values()
    assert offset == pytest.approx(7.0)
    assert unsure == pytest.approx(0.2)


def test_many_broken_pairs_are_counted() -> None:
    check = network({"a": {"b": "timed out", "c": "timed out"}, "b": {"a": "timed out", "c": "timed out"}})
    assert check.found.endswith("b cannot reach a (timed out) and 1 more pairs")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_where_no_ray_runs_is_a_problem_and_no_wait(address: str, tmp_path: Path) -> None:
    checks = cluster_module.check_cluster(address, Needs(tmp_path), None, 600)
    assert [check.state for check in checks] == ["problem"]
    assert checks[0].found.startswith(f"no Ray cluster at {address}: ")


def test_with_an_address_the_cluster_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(cluster_module, "check_cluster", lambda *arguments: seen.append(arguments) or [])
    monkeypatch.setattr("ponder.doctor.check_machine", lambda needs: [])
    needs = Needs(tmp_path)
    assert diagnose(needs, "auto", 3, 5.0) == []
    assert seen == [("auto", needs, 3, 5.0)]
