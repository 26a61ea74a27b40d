"""What every generator must keep: solvable, deterministic, readable answers only, and small numbers where promised."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.tasks import get_task
from ponder.tasks.base import Problem, Task, split_of

GENERATORS = ("arithmetic", "candles", "countdown", "decipher", "parentheses", "transpose")

HOSTILE = (
    "",
    " \n\t",
    "\x00",
    "9**9**9",
    "9" * 100_000,
    "(" * 100_000,
    "[" * 100_000,
    "<answer>" * 20_000,
    "\\boxed{" * 20_000,
    "{" * 50_000 + "\\boxed{}" * 5_000,
    "a" * 100_001,
    "\\boxed{}",
    "\\boxed{1}\\boxed{2}",
    "１２",
    "٣+٥",
    "__import__('os').system('true')",
    "-" * 1000 + "1",
    "1e999999999",
    "\ud800",
)


def draw(task: Task, seed: int, difficulty: int = 1, language: str = "en") -> Problem:
    return task.generate(random.Random(seed), difficulty, language)


def right_answer(problem: Problem) -> str:
    return str(problem.reference.get("solution", problem.reference.get("answer")))


@pytest.mark.parametrize("name", GENERATORS)
@given(seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=40, deadline=None)
def test_each_problem_is_solved_by_its_reference_and_repeats_from_its_seed(name, seed, data):
    task = get_task(name)
    difficulty = data.draw(st.integers(1, task.max_difficulty))
    language = data.draw(st.sampled_from(task.languages))
    problem = draw(task, seed, difficulty, language)
    assert problem == draw(task, seed, difficulty, language)
    assert (problem.task, problem.language, problem.difficulty) == (name, language, difficulty)
    answer = right_answer(problem)
    for text in (answer, f" {answer} \n", f"So I think:\n\\boxed{{{answer}}}", f"The answer is {answer}"):
        assert task.verify(text, problem).correct, text
        assert task.vote_key(text, problem) == task.vote_key(answer, problem) is not None
    assert not task.verify(f"{answer} or not", problem).correct
    assert not task.verify(f"\\boxed{{{answer}}} \\boxed{{17}}", problem).correct


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_raises_or_is_paid(name, text):
    task = get_task(name)
    problem = draw(task, 3)
    assert not task.verify(text, problem).correct
    task.vote_key(text, problem)


@pytest.mark.parametrize("name", GENERATORS)
@given(text=st.text(alphabet="0123456789+-*/()[]{},= abcABC\\boxed\n", max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_random_text_is_right_only_if_it_votes_with_a_right_answer(name, text):
    task = get_task(name)
    problem = draw(task, 3)
    if task.verify(text, problem).correct:
        assert task.vote_key(text, problem) is not None


@pytest.mark.parametrize("name", GENERATORS)
def test_the_split_ignores_language_and_the_share_of_test_problems_is_a_tenth(name):
    task = get_task(name)
    pairs = [(draw(task, seed, 2, "en"), draw(task, seed, 2, "zh")) for seed in range(1000)]
    assert all(en.content == zh.content and en.id != zh.id and en.prompt != zh.prompt for en, zh in pairs)
    share = sum(split_of(en) == "test" for en, _ in pairs) / len(pairs)
    assert 0.07 < share < 0.13


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_are_short_and_hold_small_numbers(name, language):
    task = get_task(name)
    for seed in range(200):
        prompt = draw(task, seed, 1 + seed % 2, language).prompt
        assert len(prompt) < 200
        assert all(int(number) <= 99 for number in re.findall(r"\d+", prompt)), prompt
        assert ("Answer with" in prompt) == (language == "en")
        assert ("答案" in prompt) == (language == "zh")
