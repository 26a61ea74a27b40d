"""The loop on a tiny untrained model: exact resume, every option, skipped updates, refusals, and that it learns."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Done, Go, make_recipe, same_weights, tear_checkpoint, timeless
from torch import Tensor

from ponder.cluster import backend
from ponder.errors import InterruptedRunError, RefusedError
from ponder.model.folder import load_folder
from ponder.model.templates import render
from ponder.model.tokenizer import Tokenizer
from ponder.pipeline import run_pipeline
from ponder.recipe import JudgingSettings
from ponder.rewards import RewardContext
from ponder.rollout.native import NativeEngine
from ponder.run import RunFolder
from ponder.stages import reinforce
from ponder.stages._feed import Asked, Asker
from ponder.tasks.base import Problem, content_hash, split_of
from ponder.training import execution, trainer
from ponder.training.optimizer import Optimizer
from ponder.verifiers.base import Verdict

# --- what a run leaves ---------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_rollouts(go: Go) -> None:
    done = go(evaluation={"every": 2, "problems": 3, "samples": 2})
    assert [line["step"] for line in done.training] == [1, 2, 3, 4]
    for line in done.training:
        rows = [row for row in done.rollouts() if row.step == line["step"]]
        assert len(rows) == 8
        rewards = [row.rewards["random"] + 0.5 * row.rewards["format"] for row in rows]
        lengths = [row.length for row in rows]
        assert line["reward/mean"] == pytest.approx(fmean(rewards))
        assert line["reward/random"] == pytest.approx(fmean(row.rewards["random"] for row in rows))
        assert line["length/mean"] == pytest.approx(fmean(lengths))
        assert line["accuracy/pass@1"] == pytest.approx(fmean(row.correct for row in rows))
        assert line["length/truncated_share"] == fmean(row.finish_reason == "length" for row in rows)
        assert line["policy/entropy"] == pytest.approx(fmean(x for row in rows for x in row.entropies), abs=1e-5)
        assert line["policy/staleness"] == 0
        assert {row.version for row in rows} == {line["step"] - 1}
        for row in rows:  # what has no advantage is not trained on
            assert list(row.ratios) == pytest.approx([1.0] * row.length if row.advantage else [], abs=1e-5)
        groups = [rows[:4], rows[4:]]
        for group in groups:
            assert len({row.problem_id for row in group}) == 1
            assert [row.sample for row in group] == [0, 1, 2, 3]
            advantages = torch.tensor([row.advantage for row in group])
            assert float(advantages.sum()) == pytest.approx(0, abs=1e-5)
        dead = [len({row.advantage for row in group}) == 1 for group in groups]
        assert line["groups/dead_share"] == fmean(dead)
        assert all(len(row.token_ids) == row.length <= 12 for row in rows)
        assert line["policy/logprob_gap"] <= 1e-5
        assert line["grad/skipped_updates"] == 0
    evaluated = [line for line in done.lines if "heldout/accuracy/pass@1" in line]
    assert [line["step"] for line in evaluated] == [0, 2, 4]
    tested = done.rollouts("test")
    assert Counter(row.step for row in tested) == {0: 6, 2: 6, 4: 6}
    assert {row.problem_id for row in tested}.isdisjoint({row.problem_id for row in done.rollouts()})


def test_the_model_it_leaves_is_the_policy(go: Go, model_folder: Path) -> None:
    done = go()
    left = load_folder(done.run.path / "stages" / "zero" / "model")
    assert left.tokenizer.encode("12+3") == load_folder(model_folder).tokenizer.encode("12+3")
    assert left.tokenizer.eos_ids == load_folder(model_folder).tokenizer.eos_ids
    assert not same_weights(done.weights, load_file(model_folder / "model.safetensors"))
    # every sampled log-probability of the last step lies under weights that are not far away
    row = done.rollouts()[-1]
    ids = torch.tensor([[*left.tokenizer.encode_prompt(row.prompt), *row.token_ids]])
    with torch.no_grad():
        log_p = left.decoder.logits(ids)[0, -row.length - 1 : -1].log_softmax(-1)
    found = log_p.gather(1, torch.tensor(list(row.token_ids))[:, None]).squeeze(1)
    torch.testing.assert_close(found, torch.tensor(list(row.logprobs)), atol=0.2, rtol=0)


def test_two_runs_are_one_run_and_another_seed_is_another(go: Go, model_folder: Path, tmp_path: Path) -> None:
    first, second = go("first"), go("second")
    assert same_weights(first.weights, second.weights)
    assert timeless(first.lines) == timeless(second.lines)
    assert first.rollouts() == second.rollouts()
    other = make_recipe(model_folder).model_copy(update={"seed": 1})
    run_pipeline(other, tmp_path / "other", quiet=True)
    assert not same_weights(first.weights, Done(tmp_path / "other").weights)


def test_adapters_move_the_matrices_that_they_stand_beside_and_nothing_else(go: Go, model_folder: Path) -> None:
    done = go(lora={"rank": 2, "targets": ["qkv"]}, optimizer={"lr": 3e-2})
    before = load_file(model_folder / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], done.weights[name])}
    assert moved == {f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"}
    assert (
        torch.linalg.matrix_rank(
            done.weights["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
        )
        <= 2
    )


def test_the_learning_rate_is_that_of_the_step(go: Go) -> None:
    done = go(optimizer={"warmup_steps": 4}, updates_per_step=1)
    assert done.series("optimizer/lr") == pytest.approx([3e-3 * share for share in (0.25, 0.5, 0.75, 1)])


# --- every option runs, and does what it says ----------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "kl in loss": {"algorithm": {"kl": {"beta": 0.1}}},
    "kl in reward": {"algorithm": {"kl": {"beta": 0.1, "estimator": "k1", "place": "reward"}}},
    "reference refresh": {"algorithm": {"kl": {"beta": 0.1, "refresh_every": 1}}},
    "dynamic sampling": {"algorithm": {"dynamic_sampling_retries": 2}},
    "two updates": {"updates_per_step": 2},
    "soft overlong": {"algorithm": {"soft_overlong_tokens": 10}},
    "masked": {"algorithm": {"mask_truncated": True, "aggregate": "token_mean"}, "sampling": {"max_tokens": 3}},
    "importance": {"algorithm": {"importance": {"mode": "sequence_mask"}}, "updates_per_step": 2},
    "entropy": {"algorithm": {"entropy_bonus": 0.01}},
    "dr grpo": {"algorithm": {"advantage_scale": "none", "aggregate": "constant"}},
    "batch scale": {"algorithm": {"advantage_scale": "batch", "reward_aggregate": "normalise_then_sum"}},
    "gspo": {"algorithm": {"loss": "gspo"}, "updates_per_step": 2},
    "cispo": {"algorithm": {"loss": "cispo"}, "updates_per_step": 2},
    "muon": {"optimizer": {"name": "muon"}},
    "lora": {"lora": {"rank": 2}, "algorithm": {"kl": {"beta": 0.1, "refresh_every": 2}}},
    "filtered": {"sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 50}},
}
MAY_BE_EMPTY = {"length/correct", "language/consistency"}  # nothing right, no word in any thinking


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_logs_finite_numbers(name: str, go: Go) -> None:
    done = go(**OPTIONS[name])
    assert len(done.training) == 4
    for line in done.training:
        missing = {key for key, value in line.items() if value is None}
        assert missing <= MAY_BE_EMPTY
        assert line["grad/skipped_updates"] == 0
        assert line["policy/logprob_gap"] <= 1e-5
    assert all(bool(weight.isfinite().all()) for weight in done.weights.values())
    assert max(done.series("grad/norm")) > 0


def test_whole_groups_are_dealt_out_to_the_updates(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five groups to two updates: three and two, each group whole and in one update only."""
    dealt: list[list[tuple[int, ...]]] = []
    original = trainer.policy_step

    def policy_step(policy: Any, optimizer: Any, trajectories: Any, *args: Any, **kwargs: Any) -> Any:
        dealt.append([t.example.prompt_ids for t in trajectories])
        return original(policy, optimizer, trajectories, *args, **kwargs)

    monkeypatch.setattr(trainer, "policy_step", policy_step)
    go(prompts_per_step=5, updates_per_step=2, steps=2)
    assert [len(update) for update in dealt] == [12, 8, 12, 8]
    for first, second in (dealt[:2], dealt[2:]):
        counts = Counter(first + second)
        assert len(counts) == 5
        assert set(counts.values()) == {4}
        assert set(first).isdisjoint(second)


def test_the_kl_term_holds_the_policy_back(go: Go) -> None:
    free = go("free", algorithm={"kl": {"beta": 1e-9}}, steps=6)
    held = go("held", algorithm={"kl": {"beta": 5.0}}, steps=6)
    assert free.series("policy/kl")[0] == pytest.approx(0, abs=1e-9)
    assert 0 < held.series("policy/kl")[-1] < free.series("policy/kl")[-1] / 2


def test_a_refreshed_reference_is_the_policy_of_that_step(go: Go) -> None:
    refreshed = go("refreshed", algorithm={"kl": {"beta": 1e-6, "refresh_every": 2}}, steps=5)
    kept = go("kept", algorithm={"kl": {"beta": 1e-6}}, steps=5)
    # copied before the update of steps 3 and 5, so that what is measured there is zero
    assert [kl < 1e-9 for kl in refreshed.series("policy/kl")] == [True, False, True, False, True]
    assert [kl < 1e-9 for kl in kept.series("policy/kl")] == [True, False, False, False, False]


def test_the_kl_penalty_is_a_reward_of_its_own(go: Go) -> None:
    done = go(algorithm={"kl": {"beta": 0.5, "estimator": "k3", "place": "reward"}})
    kl = done.series("reward/kl")
    assert kl[0] == pytest.approx(0, abs=1e-5)
    assert all(x < 0 for x in kl[1:])
    for line in done.training:
        expected = line["reward/random"] + 0.5 * line["reward/format"] + line["reward/kl"]
        assert line["reward/mean"] == pytest.approx(expected, abs=1e-6)


def test_the_overlong_penalty_is_a_reward_of_its_own(go: Go) -> None:
    done = go(algorithm={"soft_overlong_tokens": 10})
    for row in done.rollouts():
        assert row.rewards["overlong"] == pytest.approx(-max(0, row.length - 2) / 10)


def test_what_is_cut_teaches_nothing_when_masked(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every completion cut there is no update at all; without the mask there is."""
    cut = {"sampling": {"max_tokens": 1}, "steps": 2}
    monkeypatch.setattr(Tokenizer, "eos_ids", property(lambda self: (), lambda self, value: None), raising=False)
    masked = go("masked", algorithm={"mask_truncated": True}, **cut)
    assert masked.series("length/truncated_share") == [1, 1]
    assert masked.series("grad/norm") == [0, 0]
    free = go("free", **cut)
    assert max(free.series("grad/norm")) > 0


class CountingEngine(NativeEngine):
    """Remembers how many prompts each call had."""

    calls: list[int] = []

    def generate(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(len(requests))
        return super().generate(requests, *args, **kwargs)


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(CountingEngine, "calls", [])
    monkeypatch.setattr(backend, "NativeEngine", CountingEngine)
    return CountingEngine.calls


def test_dynamic_sampling_stops_at_its_cap(go: Go, engine_calls: list[int]) -> None:
    never = {"random": {"options": {"p": 0.0}}}
    go(rewards=never, algorithm={"dynamic_sampling_retries": 3}, steps=2, tasks={"countdown": {}})
    assert engine_calls == [2, 2, 2, 2] * 2


def test_dynamic_sampling_replaces_dead_groups_only(go: Go, engine_calls: list[int]) -> None:
    """Groups of two die half of the time; what lives is kept, what is asked again is new."""
    settings = {
        "group_size": 2,
        "prompts_per_step": 8,
        "steps": 3,
        "rewards": {"random": 1.0},
        "tasks": {"countdown": {}},
    }
    plain = go("plain", **settings)
    assert engine_calls == [8] * 3
    engine_calls.clear()
    mended = go("mended", **settings, algorithm={"dynamic_sampling_retries": 2})
    first_dead = int(plain.series("groups/dead_share")[0] * 8)
    assert engine_calls[:2] == [8, first_dead]
    assert fmean(mended.series("groups/dead_share")) < fmean(plain.series("groups/dead_share")) / 2
    for step in (1, 2, 3):
        problems = Counter(row.problem_id for row in mended.rollouts() if row.step == step)
        assert set(problems.values()) == {2}
        assert len(problems) == 8


def test_no_problem_comes_twice_in_a_step(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of one problem would be two baselines for it, and the same completions twice."""
    few = [f"{a}+{b}" for a in range(1, 4) for b in range(1, 4)]

    def generate(self: Any, rng: Any, difficulty: int, language: str) -> Problem:
        chain = rng.choice(few)
        reference = {"expression": chain, "answer": sum(map(int, chain.split("+")))}
        return Problem("arithmetic", f"{chain}?", reference, chain)

    monkeypatch.setattr("ponder.tasks.arithmetic.Arithmetic.generate", generate)
    never = {"random": {"options": {"p": 0.0}}}
    done = go(rewards=never, algorithm={"dynamic_sampling_retries": 4}, prompts_per_step=4)
    for step in (1, 2, 3, 4):
        problems = Counter(row.problem_id for row in done.rollouts() if row.step == step)
        assert len(problems) == 4
        assert set(problems.values()) == {4}


def test_training_never_sees_a_test_problem(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Problem] = []
    original = Asker.ask

    def ask(self: Asker, step: int, problems: Sequence[Problem]) -> Asked:
        seen.extend(problems)
        return original(self, step, problems)

    monkeypatch.setattr(Asker, "ask", ask)
    go(prompts_per_step=20, group_size=2, steps=2, watchdog={"preflight_prompts": 8})
    assert len(seen) == 48
    assert {split_of(problem) for problem in seen} == {"train"}
    assert len({content_hash(problem) for problem in seen[8:28]}) == 20


def test_half_precision_is_another_sampler_and_is_corrected_for(model_folder: Path, tmp_path: Path) -> None:
    """Two updates a step, of which the second needs to be told what the policy was."""
    changes = {"updates_per_step": 2, "algorithm": {"loss": "gspo", "importance": {"cap": 1.0}}}
    runs = {}
    for precision in ("fp32", "bf16"):
        recipe = make_recipe(model_folder, **LIVELY, **changes).model_copy(update={"precision": precision})
        run_pipeline(recipe, tmp_path / precision, quiet=True)
        runs[precision] = Done(tmp_path / precision)
    plain, half = runs["fp32"], runs["bf16"]
    assert max(plain.series("policy/logprob_gap_mean")) < 1e-6 < half.series("policy/logprob_gap_mean")[0]
    assert max(plain.series("policy/sampler_kl")) < 1e-12 < half.series("policy/sampler_kl")[0]
    for one in (plain, half):
        gaps = zip(one.series("policy/logprob_gap_mean"), one.series("policy/logprob_gap"), strict=True)
        assert all(mean <= largest for mean, largest in gaps)
    assert plain.series("policy/importance_bounded_share") == [0] * 6  # it does not correct at all
    # a cap of 1 cuts every output that the trainer finds likelier than the sampler did: all of its tokens
    assert 0.1 < half.series("policy/importance_bounded_share")[0] < 0.9


# --- updates that are not finite -----------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, calls: Callable[[int], bool]) -> list[int]:
    """Put a NaN into the gradient of every optimizer call (from 1) for which `calls` says so; returns the count."""
    count = [0]
    original = Optimizer.step

    def step(self: Optimizer, *args: Any) -> float | None:
        count[0] += 1
        if calls(count[0]):
            gradient = self.parameters[0].grad
            assert gradient is not None
            gradient[0, 0] = math.nan
        return original(self, *args)

    monkeypatch.setattr(Optimizer, "step", step)
    return count


LIVELY = {"rewards": {"random": 1.0}, "group_size": 8, "steps": 6}
"""Groups of eight with a coin for a reward: every step has a gradient."""


def test_a_gradient_that_is_not_finite_is_skipped_and_logged(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda call: call == 2)
    done = go(**LIVELY)
    assert done.series("grad/skipped_updates") == [0, 1, 0, 0, 0, 0]
    assert done.training[1]["grad/norm"] is None
    assert all(bool(weight.isfinite().all()) for weight in done.weights.values())
    # the rollouts of step 3 come from the weights of step 1: nothing moved in step 2
    assert done.series("policy/logprob_gap")[2] <= 1e-5


@pytest.mark.parametrize("first", [2, 3, 4])
def test_three_in_a_row_go_back_to_the_last_good_state(go: Go, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Wherever the row begins, on a checkpoint or between: what was skipped is done again, and ends the same."""
    clean = go("clean", **LIVELY)
    count = poison(monkeypatch, lambda call: first <= call < first + 3)
    done = go("poisoned", **LIVELY)
    good = (first - 1) // 2 * 2  # the last checkpoint before the row
    assert count[0] == 6 + (first + 2 - good)
    assert same_weights(done.weights, clean.weights)
    assert timeless(done.lines) == timeless(clean.lines)
    assert done.rollouts() == clean.rollouts()


def test_looking_for_the_loss_scale_is_no_fault(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step overflows and halves the scale: the run neither goes back nor is refused."""
    monkeypatch.setattr(execution, "_FIRST_SCALE", 2.0**60)
    recipe = make_recipe(model_folder, **LIVELY).model_copy(update={"precision": "fp16"})
    run_pipeline(recipe, tmp_path / "run", quiet=True)
    assert Done(tmp_path / "run").series("grad/skipped_updates") == [1] * 6


def test_what_going_back_does_not_mend_is_refused(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda call: call > 1)
    with pytest.raises(RefusedError, match=r"not finite.*optimizer\.lr"):
        go(**LIVELY)


# --- preflight and watchdog ----------------------------------------------------------------------------------------


def verdict_by_parity(problem: Problem, split: Any, finish_reason: str) -> Verdict:
    """Right and wrong, mixed."""
    return Verdict(len(split.answer or "") % 2 == 0, None, "")


GUARDED = {"watchdog": {"enabled": True, "preflight_prompts": 8, "patience": 2}}


def test_a_reward_that_always_pays_is_refused(
    go: Go, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.rewards._judging.judge", verdict_by_parity)
    with pytest.raises(RefusedError, match=r"before step 1.*in none of 8 groups do the rewards differ") as refusal:
        go(rewards={"random": {"options": {"p": 1.0}}}, **GUARDED)
    assert refusal.value.exit_code == 3
    record = RunFolder(tmp_path / "run").manifest().stages["zero"]
    assert record.state == "failed"
    assert record.error is not None
    assert "rewards" in record.error
    # the same with a coin for a reward is fine
    assert len(go("coin", rewards={"random": 1.0}, **GUARDED).training) == 4


def test_a_model_that_is_never_right_is_refused(go: Go) -> None:
    with pytest.raises(RefusedError, match=r"none of 32 completions is right.*difficulty"):
        go(rewards={"accuracy": 1.0}, **GUARDED)


def test_a_run_that_goes_dead_is_stopped(go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After `patience` steps, and not before."""
    monkeypatch.setattr("ponder.rewards._judging.judge", verdict_by_parity)

    def pays(contexts: Sequence[RewardContext], rewards: Any, models: object = None) -> dict[str, list[float]]:
        return {"random": [float(c.step >= 1 or c.sample % 2) for c in contexts]}

    monkeypatch.setattr(reinforce, "score_rollouts", pays)
    with pytest.raises(RefusedError, match="stopped at step 3, after 2 steps in a row"):
        go(rewards={"random": 1.0}, steps=6, **GUARDED)
    assert [line["step"] for line in RunFolder(tmp_path / "run").metrics("zero")] == [1, 2]


def test_judgements_that_crash_are_counted_and_told(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed = Verdict(False, None, "KeyError: 'x'", "crashed")
    monkeypatch.setattr("ponder.rewards._judging.judge", lambda problem, split, finish_reason: crashed)
    done = go(steps=1)
    assert done.series("verifier/crash_share") == [1.0]
    assert done.series("verifier/timeout_share") == done.series("accuracy/pass@1") == [0.0]
    assert "step 1: 8 judgements crashed, as in: KeyError: 'x'" in " ".join(capsys.readouterr().err.split())


def test_workers_that_judge_change_nothing(go: Go, model_folder: Path, tmp_path: Path) -> None:
    here = go("here", rewards={"accuracy": 1.0, "random": 0.5})
    recipe = make_recipe(model_folder, rewards={"accuracy": 1.0, "random": 0.5})
    workers = recipe.model_copy(update={"judging": JudgingSettings(workers=2)})
    run_pipeline(workers, tmp_path / "workers", quiet=True)
    there = Done(tmp_path / "workers")
    assert timeless(there.lines) == timeless(here.lines)
    assert same_weights(there.weights, here.weights)


# --- it learns -----------------------------------------------------------------------------------------------------


def share_of_ones(folder: Path) -> float:
    """Probability that a reply begins with the digit 1, on one prompt."""
    model = load_folder(folder)
    ids = model.tokenizer.encode_prompt(render("mini", "Compute 2+3.", model.tokenizer))
    with torch.no_grad():
        probabilities = model.decoder.logits(torch.tensor([ids]))[0, -1].softmax(-1)
    begins = [i for i in range(model.tokenizer.vocab_size) if model.tokenizer.decode([i]).startswith("1")]
    return float(probabilities[begins].sum())


def pay_ones(contexts: Sequence[RewardContext], rewards: Any, models: object = None) -> dict[str, list[float]]:
    return {"random": [float(context.text.startswith("1")) for context in contexts]}


BANDIT = {
    "rewards": {"random": 1.0},
    "steps": 12,
    "prompts_per_step": 4,
    "group_size": 16,
    "sampling": {"max_tokens": 2},
    "optimizer": {"lr": 3e-2},
}


def test_what_is_paid_becomes_frequent(go: Go, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforce, "score_rollouts", pay_ones)
    before = share_of_ones(model_folder)
    assert 0.1 < before < 0.4
    done = go(**BANDIT)
    assert share_of_ones(done.run.path / "stages" / "zero" / "model") > 0.9
    rewards = done.series("reward/mean")
    assert fmean(rewards[-3:]) > 0.8 > fmean(rewards[:2])


def test_with_the_sign_flipped_it_becomes_rare(go: Go, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = reinforce.combine_rewards

    def flipped(*args: Any) -> tuple[Tensor, Tensor]:
        advantages, total = original(*args)
        return -advantages, total

    monkeypatch.setattr(reinforce, "score_rollouts", pay_ones)
    monkeypatch.setattr(reinforce, "combine_rewards", flipped)
    done = go(**BANDIT)
    assert share_of_ones(done.run.path / "stages" / "zero" / "model") < share_of_ones(model_folder) / 2


# --- exact resume --------------------------------------------------------------------------------------------------

STATEFUL: dict[str, Any] = {
    "steps": 6,
    "updates_per_step": 2,
    "algorithm": {"kl": {"beta": 0.1, "refresh_every": 3}, "dynamic_sampling_retries": 1, "entropy_bonus": 0.01},
    "optimizer": {"schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1},
    "evaluation": {"every": 2, "problems": 2, "samples": 2},
    "watchdog": {"preflight_prompts": 2},
}
"""All that a step can depend on besides the weights: cursor, reference, schedule, moments, streaks, evaluations."""

KILLER = """
import json, os, random, signal, sys, time
from ponder.pipeline import run_pipeline
from ponder.recipe import Recipe
import ponder.stages.reinforce
import torch._dynamo  # which the first optimizer step would import in every process anew

recipe = Recipe.model_validate_json(sys.argv[1])

def run(folder, die_after_s=None, die_at_event=None):
    '''One start in a process of its own; whether it ended by itself.'''
    pid = os.fork()
    if pid == 0:
        if die_at_event is not None:
            left = [die_at_event]
            def count(event, arguments):
                if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "sqlite3.connect"):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(count)
        if die_after_s is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, die_after_s)  # the default action ends the process at once
        run_pipeline(recipe, folder, quiet=True)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

begun = time.monotonic()
assert run(sys.argv[2] + "/whole")
whole_s = time.monotonic() - begun
rng = random.Random(0)
kills = 0
for number in range(int(sys.argv[3])):
    folder = f"{sys.argv[2]}/broken-{number}"
    for _ in range(2):
        by_clock = rng.random() < 0.4
        after = rng.uniform(0.05, 1.0) * whole_s if by_clock else None
        kills += not run(folder, after, None if by_clock else int(10 ** rng.uniform(0, 2.3)))
    assert run(folder)
print(kills)
"""


def kill_again_and_again(model_folder: Path, tmp_path: Path, runs: int) -> None:
    """Each run is killed up to twice at random, by the clock or at a random touch of the disk."""
    recipe = make_recipe(model_folder, **STATEFUL)
    found = subprocess.run(
        [sys.executable, "-c", KILLER, recipe.model_dump_json(), str(tmp_path), str(runs)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60 + 300 * runs,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.split()[-1]) >= runs, "too few of the starts were killed to prove anything"
    whole = Done(tmp_path / "whole")
    assert len(whole.training) == 6
    assert max(whole.series("groups/dead_share")) < 1
    for number in range(runs):
        broken = Done(tmp_path / f"broken-{number}")
        assert same_weights(broken.weights, whole.weights)
        assert timeless(broken.lines) == timeless(whole.lines)
        for split in ("train", "test"):
            assert broken.rollouts(split) == whole.rollouts(split)


@pytest.mark.timeout(2000)
def test_a_killed_run_ends_bit_for_bit_as_the_unbroken_one(model_folder: Path, tmp_path: Path) -> None:
    kill_again_and_again(model_folder, tmp_path, runs=5)


def test_a_damaged_checkpoint_costs_the_steps_behind_the_one_before(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after step 5, which saves it; that is torn, and the one of step 4 has all that a step depends on."""
    whole = go("whole", **STATEFUL)
    update = reinforce.Reinforcement._update

    def stop(self: reinforce.Reinforcement, groups: Any) -> Any:
        self.context.stop.made = self.step == 4
        return update(self, groups)

    monkeypatch.setattr(reinforce.Reinforcement, "_update", stop)
    with pytest.raises(InterruptedRunError):
        go("broken", **STATEFUL)
    monkeypatch.setattr(reinforce.Reinforcement, "_update", update)
    assert len(RunFolder(tmp_path / "broken").metrics("zero")) == 5 + 3  # evaluated at 0, 2 and 4
    tear_checkpoint(tmp_path / "broken")
    broken = go("broken", **STATEFUL)
    told = " ".join(capsys.readouterr().err.split())
    assert "state.pt is damaged: the stage goes back to the checkpoint before it, and on from step 4" in told
    assert same_weights(broken.weights, whole.weights)
    assert timeless(broken.lines) == timeless(whole.lines)
    for split in ("train", "test"):
        assert broken.rollouts(split) == whole.rollouts(split)


@pytest.mark.slow
@pytest.mark.timeout(12500)
def test_many_killed_runs_end_bit_for_bit_as_the_unbroken_one(model_folder: Path, tmp_path: Path) -> None:
    kill_again_and_again(model_folder, tmp_path, runs=40)


def test_an_interrupted_evaluation_is_made_up_for(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one after the last step, when all training is behind."""
    settings = {"evaluation": {"every": 2, "problems": 2, "samples": 2}}
    whole = go("whole", **settings)
    original = reinforce.evaluate_problems
    calls = [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] in (2, 4):  # the second evaluation, and after the resume the third
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(reinforce, "evaluate_problems", interrupted)
    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            go("broken", **settings)
    broken = go("broken", **settings)
    assert same_weights(broken.weights, whole.weights)
    assert timeless(broken.lines) == timeless(whole.lines)
    assert broken.rollouts("test") == whole.rollouts("test")


def test_metrics_are_json_without_nan(go: Go) -> None:
    done = go()
    for text in done.run.metrics_path.read_text().splitlines():
        json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
