"""Held-out evaluation with a scripted engine: what is asked, how it is judged, what is summed up."""

import math
import random
from collections.abc import Sequence

import pytest

from ponder.evaluation.heldout import HeldOutResult, engine_sampling, evaluate_problems, thinking_consistency
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import SamplingSettings
from ponder.rollout.base import Completion, OnFinished, Request, Sampling
from ponder.tasks import get_task
from ponder.tasks.base import Problem

SAMPLING = Sampling(max_tokens=64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["wait, check"], vocab_size=470)


class ScriptedEngine:
    """Answers from a script, one list of texts a request; a text that ends in `...` was cut at the limit."""

    def __init__(self, tokenizer: Tokenizer, script: Sequence[Sequence[str]]) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.asked: list[Request] = []
        self.seeds: list[int] = []

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        self.asked += requests
        self.seeds.append(seed)
        groups = [[self._completion(text) for text in texts] for texts in self.script]
        if on_finished is not None:
            on_finished([(r, s, completion) for r, group in enumerate(groups) for s, completion in enumerate(group)])
        return groups

    def _completion(self, text: str) -> Completion:
        ids = self.tokenizer.encode(text)
        entropies = [float(place) for place in range(len(ids))]
        return Completion(ids, [-0.5] * len(ids), "length" if text.endswith("...") else "stop", [(0, 7)], entropies)


def problems(count: int) -> list[Problem]:
    rng = random.Random(0)
    return [get_task("arithmetic").generate(rng, 1, "en") for _ in range(count)]


def reply(answer: object, thinking: str = "hm") -> str:
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def evaluate(
    tokenizer: Tokenizer, asked: Sequence[Problem], script: Sequence[Sequence[str]], template: str = "mini"
) -> HeldOutResult:
    engine = ScriptedEngine(tokenizer, script)
    return evaluate_problems(engine, tokenizer, asked, template, len(script[0]), SAMPLING, seed=3)


def solution(problem: Problem) -> str:
    """What arithmetic's own verifier accepts."""
    task = get_task("arithmetic")
    return next(str(n) for n in range(-500, 5000) if task.verify(str(n), problem).correct)


def test_metrics_by_hand(tokenizer: Tokenizer) -> None:
    first, second = problems(2)
    right, other = solution(first), solution(second)
    script = [
        [reply(right, "wait, check"), reply(right), reply("99999"), "<think>hm..."],
        [reply(other), reply("99999"), reply("99999"), "no idea"],
    ]
    result = evaluate(tokenizer, [first, second], script)
    metrics = result.metrics
    assert metrics["accuracy/pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert metrics["accuracy/pass@1_low"] < metrics["accuracy/pass@1"] < metrics["accuracy/pass@1_high"]
    assert metrics["accuracy/pass@4"] == 1.0
    assert metrics["accuracy/cons@4"] == 0.5
    assert metrics["accuracy/pass@1/arithmetic"] == metrics["accuracy/pass@1"]
    assert metrics["length/truncated_share"] == 1 / 8
    assert metrics["length/stop_rate"] == 7 / 8
    assert metrics["reflection/words_per_response"] == 2 / 8
    lengths = [len(tokenizer.encode(text)) for row in script for text in row]
    assert metrics["length/mean"] == pytest.approx(sum(lengths) / 8)
    assert metrics["length/correct"] == pytest.approx((lengths[0] + lengths[1] + lengths[4]) / 3)
    assert metrics["length/wrong"] == pytest.approx((sum(lengths[2:4]) + sum(lengths[5:])) / 5)


def test_rows_hold_what_was_asked_and_said(tokenizer: Tokenizer) -> None:
    (problem,) = problems(1)
    text = reply(solution(problem), "step by step")
    (row,) = evaluate(tokenizer, [problem], [[text]]).rows
    assert (row.text, row.thinking, row.answer) == (text, "step by step", solution(problem))
    assert row.prompt == f"User: {problem.prompt}\nAssistant:"
    assert (row.problem_id, row.sample, row.split, row.correct) == (problem.id, 0, "test", True)
    assert row.rewards == {"accuracy": 1.0}
    assert row.finish_reason == "stop"
    ids = tokenizer.encode(text)
    assert (row.token_ids, row.logprobs, row.version) == (ids, [-0.5] * len(ids), 7)
    assert row.entropies == list(range(len(ids)))
    assert row.length == len(ids)


def test_a_prompt_that_opens_the_thinking_is_known_to_the_parser(tokenizer: Tokenizer) -> None:
    (problem,) = problems(1)
    text = f"hm</think><answer>{solution(problem)}</answer>"
    (row,) = evaluate(tokenizer, [problem], [[text]], template="{prompt} <think>").rows
    assert row.thinking == "hm"
    assert row.correct


def test_a_cut_answer_is_wrong_and_casts_no_vote(tokenizer: Tokenizer) -> None:
    (problem,) = problems(1)
    cut = f"{solution(problem)} and..."
    result = evaluate(tokenizer, [problem], [[cut, reply("99999")]])
    assert [row.correct for row in result.rows] == [False, False]
    assert result.problems[0].votes[0] is None


def test_equal_answers_vote_together(tokenizer: Tokenizer) -> None:
    """By their canonical form, as roots do, or by the verifier, as a length with and without its unit."""
    roots = Problem("math", "Give the root.", "2\\sqrt{3}", "root", verifier="math")
    length = Problem("math", "How long is it?", "5 \\text{ cm}", "length", verifier="math")
    script = [
        ["\\boxed{2\\sqrt{3}}", "\\boxed{7}", "\\boxed{7.0}", "\\boxed{\\sqrt{12}}", "\\boxed{\\frac{6}{\\sqrt{3}}}"],
        ["\\boxed{5}", "\\boxed{7}", "\\boxed{7.0}", "\\boxed{5\\text{ cm}}", "\\boxed{5 cm}"],
    ]
    result = evaluate(tokenizer, [roots, length], [[reply(text) for text in texts] for texts in script])
    for judged in result.problems:
        first, *others = judged.votes
        assert [vote == first for vote in others] == [False, False, True, True]
    assert result.metrics["accuracy/cons@5"] == 1.0


def test_nothing_right_leaves_a_gap_and_not_a_zero(tokenizer: Tokenizer) -> None:
    metrics = evaluate(tokenizer, problems(1), [[reply("99999")]]).metrics
    assert math.isnan(metrics["length/correct"])
    assert metrics["accuracy/pass@1"] == 0.0
    assert metrics["accuracy/cons@1"] == 0.0
    assert metrics["accuracy/pass@1_high"] > 0.5


def test_streams_are_named_by_key_and_problem(tokenizer: Tokenizer) -> None:
    asked = problems(3)
    engine = ScriptedEngine(tokenizer, [["x"]] * 3)
    finished: list[int] = []
    evaluate_problems(engine, tokenizer, asked, "mini", 1, SAMPLING, seed=3, key="table", on_progress=finished.append)
    assert [request.key for request in engine.asked] == [f"table/{problem.id}" for problem in asked]
    assert engine.seeds == [3]
    assert finished == [3]
    assert tokenizer.decode(engine.asked[0].prompt_ids) == f"User: {asked[0].prompt}\nAssistant:"


def test_no_problems_is_a_mistake(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a problem"):
        evaluate_problems(ScriptedEngine(tokenizer, []), tokenizer, [], "mini", 1, SAMPLING, seed=0)


def test_sampling_ends_at_the_tokenizers_end(tokenizer: Tokenizer) -> None:
    sampling = engine_sampling(SamplingSettings(temperature=0.6, top_p=0.95, top_k=7, max_tokens=9), tokenizer)
    assert sampling == Sampling(max_tokens=9, temperature=0.6, top_p=0.95, top_k=7, stop_ids=tokenizer.eos_ids)


def test_consistency_is_a_mean_over_the_replies_with_words(tokenizer: Tokenizer) -> None:
    """Wordless thinking is left out; a problem without any reply with words too."""
    first, second, third = problems(3)
    script = [
        [reply(1, "so 对的"), reply(1, "3+5=8"), reply(1, "so"), reply(1, "")],  # 1/3 and 1
        [reply(1, "so we see"), reply(1, "对"), reply(1, "so"), reply(1, "so")],  # 1, 0, 1, 1
        [reply(1, "3+5"), reply(1, "x"), "no thinking", reply(1, "")],
    ]
    result = evaluate(tokenizer, [first, second, third], script)
    estimate = result.estimates["language/consistency"]
    assert estimate.value == pytest.approx(((1 / 3 + 1) / 2 + 3 / 4) / 2)
    assert estimate.low < estimate.value < estimate.high
    assert result.metrics["language/consistency"] == estimate.value


def test_without_words_there_is_no_consistency(tokenizer: Tokenizer) -> None:
    result = evaluate(tokenizer, problems(1), [[reply("99999", "3+5")]])
    assert "language/consistency" not in result.estimates
    assert math.isnan(result.metrics["language/consistency"])


def test_a_language_that_cannot_be_told_from_others_is_left_out() -> None:
    assert thinking_consistency("so", "tlh") is None
    assert thinking_consistency("so", "en-GB") == 1.0
    assert thinking_consistency("so 对", "zh-CN") == 0.5
