"""What a machine or a cluster lacks for a run, found before any GPU is taken.

Each check is one function that returns one `Check`: `machine.py` has those of one machine, `cluster.py` those between
the nodes of a Ray cluster. Nothing is downloaded, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ponder.doctor.check import Check, State
from ponder.doctor.machine import check_machine
from ponder.doctor.needs import Needs, needs_of
from ponder.errors import UsageError

__all__ = ["Check", "Needs", "State", "diagnose", "needs_of", "problems", "summary_rows"]


def diagnose(
    needs: Needs, address: str | None = None, num_nodes: int | None = None, deadline_s: float = 600.0
) -> list[Check]:
    """Check this machine and, with the `address` of a Ray cluster (`auto` or host:port), all of its nodes.

    `num_nodes` waits for so many of them, at most `deadline_s` seconds. Raises `UsageError` for it without a cluster.
    """
    if num_nodes is not None and address is None:
        raise UsageError("--nodes counts the nodes of a Ray cluster: give its --address, or set cluster.address")
    checks = check_machine(needs)
    if address is None:
        return checks
    from ponder.doctor.cluster import check_cluster

    return [*checks, *check_cluster(address, needs, num_nodes, deadline_s)]


def problems(checks: Iterable[Check]) -> list[Check]:
    """Those that would stop the run."""
    return [check for check in checks if check.state == "problem"]


def summary_rows(checks: Sequence[Check]) -> list[tuple[str, Check]]:
    """(where, check), with nodes that say the same in one row; `where` is empty for this machine."""
    alike: dict[tuple[bool, Check], list[str]] = {}
    for check in checks:
        alike.setdefault((bool(check.node), replace(check, node="")), []).append(check.node)
    everywhere = len({check.node for check in checks if check.node})
    return [
        ("all nodes" if len(nodes) == everywhere > 1 and of_a_node else ", ".join(nodes), check)
        for (of_a_node, check), nodes in alike.items()
    ]
