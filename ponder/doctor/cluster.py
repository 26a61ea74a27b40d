"""The checks of a Ray cluster: every node by itself, and all of them together.

One actor without resources is pinned to each node; every call to it has a deadline, and a node that does not answer is
a problem of its own, which keeps no other node from being looked at.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ponder.doctor.check import Check
from ponder.doctor.machine import existing, resources
from ponder.doctor.needs import Needs, Node
from ponder.doctor.nodes import NodeProbe, listing, versions

MUST_EQUAL = frozenset({"python", "ponder", "ray", "torch", "ponder's code"})
"""A difference in the others is worth a warning."""
MOST_CLOCK_S = 1.0
"""Ages are measured on one clock each, so that an offset between two harms nothing but logs."""
_CLOCK_TRIPS = 3
_CALL_S = 60.0


@dataclass
class Cluster:
    """The nodes of a cluster that answer, each with its probe."""

    probes: dict[str, Any]
    """Actor handles by the node's address."""
    capacity: dict[str, Node]
    lost: list[Check] = field(default_factory=list)

    def ask(self, method: str, arguments: Callable[[str], tuple[Any, ...]] = lambda node: ()) -> dict[str, Any]:
        """Call a method on every node at once; the answers by node. A node that gives none is lost, and says why."""
        import ray

        calls = {node: getattr(probe, method).remote(*arguments(node)) for node, probe in self.probes.items()}
        if not calls:
            return {}
        ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=self.deadline_s(method))
        answers: dict[str, Any] = {}
        for node, call in calls.items():
            if call not in ready:
                self._lose(node, f"did not answer `{method}` within {self.deadline_s(method):g} s")
                continue
            try:
                answers[node] = ray.get(call, timeout=_CALL_S)
            except ray.exceptions.RayError as error:
                self._lose(node, str(error).strip().splitlines()[-1])
        return answers

    @staticmethod
    def deadline_s(method: str) -> float:
        """The first calls start a Python and import torch, perhaps from a cold disk; the others are quick."""
        return 10 * _CALL_S if method in ("versions", "checks") else _CALL_S

    def _lose(self, node: str, why: str) -> None:
        del self.probes[node]
        advice = "look whether the node is up and has Ponder in the same environment (`ray status`)"
        self.lost.append(Check("node", "problem", why, advice, node))


def check_cluster(address: str, needs: Needs, num_nodes: int | None, deadline_s: float) -> list[Check]:
    """Join a cluster, look at each of its nodes and at all of them, and leave it.

    `num_nodes` waits until so many have joined, at most `deadline_s` seconds.
    """
    failure = _join(address)
    if failure:
        advice = "start Ray there (`ray start --head`), or give its address with --address"
        return [Check("cluster", "problem", f"no Ray cluster at {address}: {failure}", advice)]
    import ray

    try:
        found = _wait_for_nodes(num_nodes, deadline_s)
        nodes = {node["NodeManagerAddress"] + _tail(node, found): node for node in found}
        cluster = Cluster({name: _start_probe(node) for name, node in nodes.items()}, _capacity(nodes))
        return [_count(len(nodes), num_nodes), *look(cluster, needs), *cluster.lost]
    finally:
        ray.shutdown()


def look(cluster: Cluster, needs: Needs) -> list[Check]:
    """All checks of a cluster whose probes have been placed. Versions come first, as they start each node's Python."""
    alike = same_versions({"this machine": versions(), **cluster.ask("versions")})
    checks = [
        replace(check, node=node)
        for node, found in cluster.ask("checks", lambda node: (needs,)).items()
        for check in found
    ]
    room = resources(needs, list(cluster.capacity.values()), "the cluster has")
    return [*checks, alike, room, clocks(_offsets(cluster)), network(_reachability(cluster)), *shared(cluster, needs)]


# --- judged from what the nodes said ----------------------------------------------------------------------------------


def same_versions(by_node: Mapping[str, Mapping[str, str]]) -> Check:
    """Whether all nodes have the same packages; the most common version is taken for the right one."""
    differing: list[str] = []
    grave = False
    for name in next(iter(by_node.values())):
        counts = Counter(found[name] for found in by_node.values())
        usual = counts.most_common(1)[0][0]
        odd = [f"{found[name]} on {node}" for node, found in by_node.items() if found[name] != usual]
        if odd:
            differing.append(f"{name} is {usual}, but {', '.join(odd)}")
            grave |= name in MUST_EQUAL
    if not differing:
        return Check("versions", "ok", "the same on all nodes")
    advice = "give all nodes one environment: a shared folder or an image"
    return Check("versions", "problem" if grave else "warning", "; ".join(differing), advice)


def clocks(offsets: Mapping[str, tuple[float, float]]) -> Check:
    """Offsets of the nodes' clocks from this one's, {node: (seconds, how far that may be off)}."""
    far = {node: offset for node, (offset, unsure) in offsets.items() if abs(offset) - unsure > MOST_CLOCK_S}
    if far:
        found = ", ".join(f"{node} by {offset:+.1f} s" for node, offset in far.items())
        return Check("clocks", "warning", f"off from this machine's: {found}", "run an NTP client on every node")
    return Check("clocks", "ok", f"within {MOST_CLOCK_S:g} s of each other")


def network(unreachable: Mapping[str, Mapping[str, str]]) -> Check:
    """Which nodes cannot be reached from which, {from: {to: why}}."""
    pairs = [
        f"{node} cannot reach {other} ({why})" for node, others in unreachable.items() for other, why in others.items()
    ]
    if pairs:
        more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        advice = "let all ports through between the nodes: Ray and torch.distributed choose theirs freely"
        return Check("network", "problem", "; ".join(pairs[:3]) + more, advice)
    return Check("network", "ok", "every node reaches every other")


def shared(cluster: Cluster, needs: Needs) -> list[Check]:
    """Whether all nodes see the run folder and the models that lie in folders."""
    checks = [_shared_run_folder(cluster, needs.run_dir)]
    paths = [str(path.absolute()) for path in needs.models]
    seen = cluster.ask("listings", lambda node: (paths,)) if paths else {}
    for path in paths:
        own = listing(Path(path))
        blind = [node for node, listings in seen.items() if listings[path] != own]
        if blind:
            advice = "put the model where every node sees it under the same path"
            checks.append(Check("model", "problem", f"{path} is missing or different on {', '.join(blind)}", advice))
        else:
            checks.append(Check("model", "ok", f"{path} is the same on all nodes"))
    return checks


def _shared_run_folder(cluster: Cluster, run_dir: Path) -> Check:
    """A file that is written here must be read there: trainers leave their checkpoints in the run folder."""
    folder, token = existing(run_dir), secrets.token_hex(16)
    path = folder / f".doctor-{token}"
    try:
        path.write_text(token, encoding="utf-8")
        read = cluster.ask("read", lambda node: (str(path),))
    except OSError as error:
        found = f"{folder} cannot be written to: {error.strerror}"
        return Check("shared run folder", "problem", found, "choose another folder with --run")
    finally:
        path.unlink(missing_ok=True)
    blind = [node for node, text in read.items() if text != token]
    if blind:
        advice = "choose a folder that all nodes share with --run"
        return Check("shared run folder", "problem", f"{folder} is another one on {', '.join(blind)}", advice)
    return Check("shared run folder", "ok", f"{folder} is the same on all nodes")


# --- asked of the nodes -----------------------------------------------------------------------------------------------


def _offsets(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Of each node's clock, by the quickest of a few round trips: the answer was given about half way."""
    best: dict[str, tuple[float, float]] = {}
    for node in list(cluster.probes):
        for _ in range(_CLOCK_TRIPS):
            sent = time.time()
            answer = _ask_one(cluster, node, "clock")
            half = (time.time() - sent) / 2
            if answer is not None and (node not in best or half < best[node][1]):
                best[node] = (answer - sent - half, half)
    return best


def _ask_one(cluster: Cluster, node: str, method: str) -> Any:
    alone = Cluster({node: cluster.probes[node]}, {}) if node in cluster.probes else Cluster({}, {})
    answer = alone.ask(method).get(node)
    for check in alone.lost:
        cluster.probes.pop(node, None)
        cluster.lost.append(check)
    return answer


def _reachability(cluster: Cluster) -> dict[str, dict[str, str]]:
    token = secrets.token_hex(16)
    addresses = {node: node.partition(" ")[0] for node in cluster.probes}
    listening = cluster.ask("listen", lambda node: (addresses[node], token))
    places = {node: (addresses[node], port) for node, port in listening.items()}
    return cluster.ask("unreachable", lambda node: ({other: p for other, p in places.items() if other != node}, token))


# --- Ray --------------------------------------------------------------------------------------------------------------


def _join(address: str) -> str:
    """Become a driver of a cluster; why that is impossible, or nothing."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():  # Ray itself would try for a minute
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            return error.strerror or str(error)
    try:
        import ray
    except ImportError:
        return 'Ray is not installed: pip install "ponder[ray]"'
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def _wait_for_nodes(num_nodes: int | None, deadline_s: float) -> list[dict[str, Any]]:
    import ray

    ends = time.monotonic() + deadline_s
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        if num_nodes is None or len(alive) >= num_nodes or time.monotonic() >= ends:
            return alive
        time.sleep(1.0)


def _count(found: int, wanted: int | None) -> Check:
    if wanted is not None and found < wanted:
        advice = "look at the logs of `ray start` on the others, or ask for fewer nodes"
        return Check("cluster", "problem", f"{found} of {wanted} nodes have joined", advice)
    return Check("cluster", "ok", f"{found} nodes")


def _tail(node: Mapping[str, Any], nodes: list[dict[str, Any]]) -> str:
    """Tells apart nodes that share an address, as those of a test on one machine do."""
    shared_by = sum(other["NodeManagerAddress"] == node["NodeManagerAddress"] for other in nodes)
    return f" ({node['NodeID'][:6]})" if shared_by > 1 else ""


def _capacity(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Node]:
    return {
        name: Node(node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0)) for name, node in nodes.items()
    }


def _start_probe(node: Mapping[str, Any]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(NodeProbe).options(num_cpus=0, max_restarts=0, scheduling_strategy=pinned).remote()
