"""General requests: hand-worked replies, ways to cheat, and held-out problems made of what training teaches."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.mini.general import general_text
from ponder.tasks.base import Problem, split_of
from ponder.tasks.general import FACTS, NAMES, NOUNS, QUALITIES, TASK, TOPICS, accepted_replies


def every_problem() -> list[Problem]:
    rng = random.Random(0)
    drawn = (TASK.generate(rng, 1, language) for _ in range(10_000) for language in ("en", "zh"))
    return list({problem.prompt: problem for problem in drawn}.values())


PROBLEMS = every_problem()


def problem_of(prompt: str) -> Problem:
    return next(problem for problem in PROBLEMS if problem.prompt == prompt)


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("Tell me the capital of France.", "Paris."),
        ("Tell me the capital of France.", "Sure! The capital of France is Paris. I hope this helps!"),
        ("告诉我法国的首都。", "好问题！ 法国的首都是巴黎。 希望有帮助!"),
        ("I forgot the animal that says meow.", "the cat"),
        ("Say red cat in Chinese.", "红色的猫。"),
        ("Say two birds in Chinese.", "两只鸟"),
        ("用英文说红猫。", "A red cat."),
        ("Tell me, who are you?", "I am Ponder."),
        ("请问你是谁?", "我是Ponder，一个先想再答的小模型。"),
        ("Good morning, I am Anna.", "Good morning, Anna! How can I help you?"),
        ("Good morning, I am Anna.", "Hi!"),
        ("Write a short line about the sea and the moon.", "The moon shines over the sea."),
        ("写一句话, 关于大海和月亮。", "月亮在大海上发光。"),
    ],
)
def test_right(prompt, reply):
    assert TASK.verify(reply, problem_of(prompt)).correct


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("Tell me the capital of France.", "Rome."),
        ("Tell me the capital of France.", "Paris, Rome, London, Berlin."),
        ("Tell me the capital of France.", "Sure! Sure! Paris."),
        ("Tell me the capital of France.", "巴黎。"),
        ("Tell me the capital of France.", "Good question!"),
        ("Say red cat in Chinese.", "红猫, 蓝猫"),
        ("Say red cat in Chinese.", "red cat"),
        ("用英文说红猫。", "red cats"),
        ("Say two birds in Chinese.", "两本鸟"),
        ("Tell me, who are you?", "I am Ponder, and I am Anna."),
        ("Tell me, who are you?", "I am a model."),
        ("Good morning, I am Anna.", "Good evening, Anna!"),
        ("Good morning, I am Anna.", "Good morning, Tom!"),
        ("Good morning, I am Anna.", "早上好!"),
        ("Write a short line about the sea and the moon.", "The moon shines over the sea"),
        ("Write a short line about the sea and the moon.", "The sea and the moon."),
        ("Write a short line about the sea and the moon.", "The sea sings. The moon shines."),
        ("Write a short line about the sea and the moon.", "The moon shines over the season of rain."),
        ("Write a short line about the sea and the moon.", "The sea, the moon, the sun and the cat sleep."),
        ("Write a short line about the sea and the moon.", "The moon sea sea sea sea shines."),
        ("Write a short line about the sea and the moon.", "Moon and 月亮 shine over the sea."),
        ("写一句话, 关于大海和月亮。", "写一句话, 关于大海和月亮。"),
    ],
)
def test_wrong(prompt, reply):
    assert not TASK.verify(reply, problem_of(prompt)).correct


def test_replies_to_other_problems_of_a_kind_are_wrong():
    """What one request accepts, no other request of another meaning does: no reply fits all."""
    facts = [problem for problem in PROBLEMS if problem.reference["kind"] == "fact"]
    for problem in facts[::7]:
        for other in facts[::5]:
            if other.reference["answer"] != problem.reference["answer"]:
                assert not any(TASK.verify(reply, problem).correct for reply in accepted_replies(other))


def test_prompts_and_replies_are_short_and_accepted():
    for problem in PROBLEMS[::3]:
        assert len(re.findall(r"\w+", problem.prompt)) <= 20
        assert problem.domain == "general"
        for reply in accepted_replies(problem):
            assert TASK.verify(reply, problem).correct
            assert TASK.vote_key(reply, problem) == TASK.vote_key(accepted_replies(problem)[0], problem) is not None


def test_held_out_requests_are_made_of_what_is_taught():
    train = " ".join(problem.prompt for problem in PROBLEMS if split_of(problem) == "train")
    held = {problem.content for problem in PROBLEMS if split_of(problem) == "test"}
    assert 80 <= len(held) <= 130
    for language in ("en", "zh"):
        taught = [subject for subject, _ in FACTS[language]] + list(NAMES[language]) + list(TOPICS[language])
        assert all(word in train for word in taught)
    for words in (*QUALITIES, *((noun.english, noun.chinese) for noun in NOUNS)):
        assert all(word in train for word in words)
    assert len(FACTS["en"]) == len(FACTS["zh"])


def test_the_base_was_told_none_of_the_requests():
    told = {general_text(random.Random(seed), language)[0] for seed in range(2000) for language in ("en", "zh")}
    assert not told & {problem.prompt for problem in PROBLEMS}


@given(text=st.text(max_size=400), number=st.integers(0, len(PROBLEMS) - 1))
def test_no_text_raises(text, number):
    problem = PROBLEMS[number]
    verdict = TASK.verify(text, problem)
    if verdict.correct:
        assert TASK.vote_key(text, problem) is not None


@pytest.mark.parametrize("text", ["", " \n", "\x00", "。", "!" * 300, "a" * 100_001, "\ud800", "İ" * 100, "ﷺ" * 300])
def test_no_hostile_text_raises_or_is_paid(text):
    for problem in PROBLEMS[::20]:
        assert not TASK.verify(text, problem).correct
        TASK.vote_key(text, problem)
