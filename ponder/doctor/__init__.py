"""What a machine or a cluster lacks for a run, found before any GPU is taken.

Each check is one function that returns one `Check`: `machine.py` has those of one machine, `cluster.py` those between
the nodes of a Ray cluster. Nothing is downloaded, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ponder.doctor.check import Check, State
from ponder.doctor.machine import check_machine
from ponder.doctor.needs import Needs, needs_of

__all__ = ["Check", "Needs", "State", "diagnose", "needs_of", "problems", "summary_rows"]


def diagnose(
    needs: Needs, address: str | None = None, num_nodes: int | None = None, deadline_s: float = 600.0
) -> list[Check]:
    """Check this machine and, with the `address` of a Ray cluster (`auto` or host:port), all of its nodes.

    `num_nodes` waits for so many of them, at most `deadline_s` seconds.
    """
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
    alike: dict[Check, list[str]] = {}
    for check in checks:
        key = Check(check.name, check.state, check.found, check.advice)
        # a node of the cluster may say what this machine says: the two stay apart
        alike.setdefault(key if not check.node else Check(key.name, key.state, key.found, key.advice, "*"), []).append(
            check.node
        )
    everywhere = len({check.node for check in checks if check.node})
    rows = []
    for check, nodes in alike.items():
        named = "all nodes" if len(nodes) == everywhere and everywhere > 1 else ", ".join(filter(None, nodes))
        rows.append((named, check))
    return rows
