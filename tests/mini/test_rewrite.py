"""The cold start's rewriter: worked by hand, wholly in one language, and nothing that it does not know."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ponder.mini.rewrite import REWRITTEN_TASKS, rewrite_trace
from ponder.mini.traces import WORDS, Narrator
from ponder.mini.world import _NARRATIONS
from ponder.model.replies import reply_text
from ponder.model.tokenizer import Tokenizer
from ponder.tasks import get_task
from ponder.tasks.base import Problem

COUNTDOWN = Problem("countdown", "?", {"numbers": [3, 5, 8], "target": 23, "operators": "+-*"}, "3,5,8=23", "en")
COUNTDOWN_ZH = Problem("countdown", "?", COUNTDOWN.reference, "3,5,8=23", "zh")
PARENTHESES = Problem("parentheses", "?", {"expression": "3+5*2", "target": 16}, "3+5*2=16", "en")
MIXED = "let us go step by step: 3+5=8, 8*2=17 no. 等等, 下一个: 3*5=15, 15+8=23 对. 检查: 3*5=15, 15+8=23 正确"


def rewritten(problem: Problem, thinking: str, answer: str) -> tuple[str, str] | None:
    return rewrite_trace(problem, thinking, answer, random.Random(0))


def test_a_mixed_trace_becomes_english() -> None:
    assert rewritten(COUNTDOWN, MIXED, "3*5+8") == (
        "I need 23 from 3, 5, 8.\n"
        "let us go step by step: 3+5=8, 8*2=17 no\n"
        "wait, next: 3*5=15, 15+8=23 yes\n"
        "check: 3*5=15, 15+8=23 correct",
        "3*5+8=23, so \\boxed{3*5+8}",
    )


def test_the_same_trace_becomes_chinese() -> None:
    assert rewritten(COUNTDOWN_ZH, MIXED, "3*5+8 = 23") == (
        "我要用 3, 5, 8 得到 23。\n"
        "一步一步来: 3+5=8, 8*2=17 不对\n"
        "等等, 下一个: 3*5=15, 15+8=23 对\n"
        "检查: 3*5=15, 15+8=23 正确",
        "3*5+8=23, 答案 \\boxed{3*5+8}",
    )


def test_parentheses_and_a_guess() -> None:
    assert rewritten(PARENTHESES, "也许: 3+5=8, 8*2=16 yes", "(3+5)*2") == (
        "I need 16 from 3+5*2.\nmaybe: 3+5=8, 8*2=16 yes",
        "(3+5)*2=16, so \\boxed{(3+5)*2}",
    )
    assert rewritten(PARENTHESES, "我猜", "(3+5)*2") == (
        "I need 16 from 3+5*2.\nI guess",
        "(3+5)*2=16, so \\boxed{(3+5)*2}",
    )


@pytest.mark.parametrize(
    ("thinking", "answer"),
    [
        (MIXED, "3*5+7"),  # wrong
        (MIXED, ""),
        (MIXED, "3*5+8=24"),  # says something wrong
        ("", "3*5+8"),
        (" . \n", "3*5+8"),
        ("let us go step by step: 3*5=15, 15+8=23 yes </think>", "3*5+8"),
        ("let me see: 3*5=15, 15+8=23 yes", "3*5+8"),
        ("3*5==15 yes", "3*5+8"),
        ("3*5=15, 15+8=23 yesterday", "3*5+8"),
        ("x" * 100_000, "3*5+8"),
    ],
)
def test_what_is_wrong_or_unknown_is_left_alone(thinking: str, answer: str) -> None:
    assert rewritten(COUNTDOWN, thinking, answer) is None


def test_other_tasks_are_left_alone() -> None:
    problem = get_task("decipher").generate(random.Random(0), 1, "en")
    assert rewritten(problem, "I guess", problem.reference["answer"]) is None


def test_the_phrases_of_both_languages_stand_side_by_side() -> None:
    assert {kind: len(phrases) for kind, phrases in WORDS["en"].items()} == {
        kind: len(phrases) for kind, phrases in WORDS["zh"].items()
    }


@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from(REWRITTEN_TASKS),
    language=st.sampled_from(["en", "zh"]),
    temperament=st.sampled_from(["hasty", "brief", "patient", "careful"]),
)
def test_every_correct_trace_of_the_world_is_readable_afterwards(
    seed: int, name: str, language: str, temperament: str
) -> None:
    rng = random.Random(seed)
    problem = get_task(name).generate(rng, 1, language)
    thinking, answer = _NARRATIONS[name](problem, Narrator(rng, language, temperament, switch_rate=0.5))  # type: ignore[arg-type]
    assume(get_task(name).verify(answer, problem).correct)
    readable = rewritten(problem, thinking, answer)
    assert readable is not None, thinking
    text, summary = readable
    assert get_task(name).verify(summary, problem).correct
    foreign = r"[\u4e00-\u9fff]" if language == "en" else r"[a-z]"
    assert not re.search(foreign, text + summary.replace("boxed", ""))
    # every number that was thought is still there, in its order, after the statement of the problem
    assert re.findall(r"\d+", text.partition("\n")[2]) == re.findall(r"\d+", thinking)


def test_it_is_cheap(repository: Path) -> None:
    """With the embedded tokenizer: the statement, the line breaks and the summary are all that is added."""
    tokenizer = Tokenizer.from_folder(repository / "ponder" / "mini" / "weights")
    rng = random.Random(0)
    for number in range(60):
        language = ("en", "zh")[number % 2]
        problem = get_task("countdown").generate(rng, 1, language)
        thinking, answer = _NARRATIONS["countdown"](problem, Narrator(rng, language, "careful", slip_rate=0.0))
        readable = rewritten(problem, thinking, answer)
        if readable is None:  # the search found nothing
            continue
        text, summary = readable
        grown = len(tokenizer.encode(text)) - len(tokenizer.encode(thinking))
        assert grown <= 20 + 2 * text.count("\n")
        assert len(tokenizer.encode(summary)) <= 32
        assert reply_text(text, summary).endswith(summary)
