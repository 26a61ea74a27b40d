"""Packing examples into micro-batches: nothing lost, nothing over budget, shared prompts computed once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.training.packing import Example, MicroBatch, micro_batches
from ponder.training.update import batch_logprobs

tokens = st.integers(0, 19)
# few different prompts, so that neighbours often share theirs
examples_strategy = st.lists(
    st.builds(
        Example,
        st.sampled_from([(1,), (1, 2, 3), (4, 5), (7,) * 9]),
        st.lists(tokens, min_size=1, max_size=12).map(tuple),
    ),
    max_size=12,
)


def make_decoder() -> Decoder:
    decoder = Decoder(
        DecoderConfig(
            family="llama",
            vocab_size=20,
            hidden_size=16,
            intermediate_size=24,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=4,
            max_positions=128,
            initializer_range=0.3,
        )
    )
    decoder.initialise(0)
    decoder.double()
    decoder.rotations = decoder.rotations.to(torch.complex128)
    return decoder


def rows_needed(examples: Sequence[Example]) -> int:
    """Prompts of neighbours that agree count once."""
    prompts = [e.prompt_ids for e in examples]
    own = [p for i, p in enumerate(prompts) if i == 0 or prompts[i - 1] != p]
    return sum(map(len, own)) + sum(len(e.reply_ids) for e in examples)


@given(examples_strategy, st.integers(1, 60))
def test_every_example_is_packed_once_in_order_within_the_budget(examples: list[Example], budget: int) -> None:
    batches = list(micro_batches(examples, budget))
    assert [m for b in batches for m in b.members] == list(range(len(examples)))
    for batch in batches:
        members = [examples[m] for m in batch.members]
        assert len(batch.tokens) == rows_needed(members)
        assert len(batch.tokens) <= budget or len(members) == 1
    for one, other in itertools.pairwise(batches):
        # no batch ends before it has to
        assert rows_needed([examples[m] for m in (*one.members, other.members[0])]) > budget


@given(examples_strategy)
def test_what_predicts_what(examples: list[Example]) -> None:
    for batch in micro_batches(examples, 40):
        check_one(batch, [examples[m] for m in batch.members])


def check_one(batch: MicroBatch, members: Sequence[Example]) -> None:
    assert batch.targets.tolist() == [t for e in members for t in e.reply_ids]
    assert batch.sequence_ids.tolist() == [i for i, e in enumerate(members) for _ in e.reply_ids]
    before = [t for e in members for t in (e.prompt_ids[-1], *e.reply_ids[:-1])]
    assert batch.tokens[batch.predictors].tolist() == before
    positions = [len(e.prompt_ids) - 1 + i for e in members for i in range(len(e.reply_ids))]
    assert batch.packing.positions[batch.predictors].tolist() == positions


def gradients(decoder: Decoder, examples: Sequence[Example], budget: int) -> tuple[list[float], torch.Tensor]:
    """Log-probabilities of all reply tokens, and the gradient of their weighted sum."""
    decoder.zero_grad()
    weights = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found: list[float] = []
    for batch in micro_batches(examples, budget):
        logprobs, _ = batch_logprobs(decoder, batch)
        (logprobs * weights[len(found) : len(found) + len(logprobs)]).sum().backward()
        found += logprobs.tolist()
    return found, torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])


LENGTHS = (3, 60, 1, 24, 25, 2, 59, 8)


@pytest.mark.parametrize("budget", [1, 70, 150, 10_000])
def test_packed_and_shared_equals_one_example_at_a_time(budget: int) -> None:
    """In values and in gradients; a shared prompt gets the gradients of all its replies."""
    decoder = make_decoder()
    generator = torch.Generator().manual_seed(4)
    prompts = [tuple(torch.randint(20, (n,), generator=generator).tolist()) for n in (5, 5, 5, 11, 11, 1, 1, 2)]
    prompts[1] = prompts[2] = prompts[0]
    prompts[4] = prompts[3]
    examples = [
        Example(prompt, tuple(torch.randint(20, (n,), generator=generator).tolist()))
        for prompt, n in zip(prompts, LENGTHS, strict=True)
    ]
    expected, expected_gradient = [], torch.zeros(())
    weights = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    decoder.zero_grad()
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.reply_ids]])
        log_p = decoder.logits(ids)[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = log_p.gather(1, torch.tensor(example.reply_ids)[:, None]).squeeze(1)
        (chosen * weights[len(expected) : len(expected) + len(chosen)]).sum().backward()
        expected += chosen.tolist()
    expected_gradient = torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])
    found, gradient = gradients(decoder, examples, budget)
    assert found == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("example", [Example((), (1,)), Example((1,), ())])
def test_an_empty_prompt_or_reply_is_refused(example: Example) -> None:
    with pytest.raises(ValueError, match="example 1 has an empty"):
        list(micro_batches([Example((1,), (2,)), example], 10))
