"""The arithmetic of the benchmarks: ratios, operation counts, forced lengths."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder

CONFIG = DecoderConfig("llama", 300, 16, 24, 2, 4, 2, 8, 64)


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports a module of benchmarks/ by name, and forgets all of them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (repository / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]


def test_a_ratio_is_the_peers_over_ours(benchmark: type[ModuleType]) -> None:
    measure = benchmark("measure")
    results = {
        "ponder": measure.Result({}, [{"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 4.0}]),
        "peer": measure.Result({}, [{"seconds": 6.0}, {"seconds": 6.0}, {"seconds": 8.0}]),
    }
    assert measure.ratios(results, "seconds") == {"peer": {"of_medians": 3.0, "smallest": 2.0, "largest": 6.0}}


def test_counted_operations_are_those_of_the_weights(benchmark: type[ModuleType]) -> None:
    roofline = benchmark("roofline")
    weights = sum(p.numel() for n, p in Decoder(CONFIG).named_parameters() if p.ndim == 2 and n.startswith("layers"))
    assert roofline.block_operations(CONFIG, tokens=7, attended=0) == 2 * 7 * weights
    # q k^T and the weighted sum of v: two operations each a head, dimension and position
    assert roofline.block_operations(CONFIG, tokens=0, attended=5) == 2 * 4 * (4 * 8) * 5
    assert roofline.head_operations(CONFIG, tokens=3) == 3 * 2 * 16 * 300
    # tokens at positions 2, 3 and 4 see 3, 4 and 5 positions
    assert roofline.positions_attended(2, 3) == 12


def test_a_reply_can_end_at_its_planned_length_only(benchmark: type[ModuleType]) -> None:
    grpo_step = benchmark("grpo_step")
    eos, limit, prompt = 5, 4, 3
    plan = grpo_step.Plan(lengths=[[1, 3], [4, 4]], rewards=[[0.0, 1.0], [1.0, 1.0]])
    process = grpo_step._length_processor(plan, [eos], limit, prompt)
    ended = []
    for step in range(limit):
        scores = process(torch.zeros(4, prompt + step, dtype=torch.long), torch.zeros(4, 8))
        forced = torch.isneginf(scores).sum(1) == 7
        assert torch.equal(torch.isfinite(scores[:, eos]), forced)
        ended.append(forced.tolist())
    # rows end themselves after 1 and 3 tokens; those at the limit never do
    assert ended == [[True, False, False, False], [False] * 4, [False, True, False, False], [False] * 4]


def test_a_plan_states_its_truncated_and_dead_shares(benchmark: type[ModuleType]) -> None:
    plan = benchmark("grpo_step").Plan(lengths=[[1, 3], [4, 4]], rewards=[[0.0, 1.0], [1.0, 1.0]])
    facts = plan.facts(limit=4)
    assert facts == {"reply_tokens": 12, "mean_length": 3.0, "truncated_share": 0.5, "dead_groups_share": 0.5}
