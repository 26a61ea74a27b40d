"""Streams of problems: they repeat from a cursor, keep to their split, and mix as they are told."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import UsageError
from ponder.recipe import TaskSettings
from ponder.tasks import ProblemStream, get_task, held_out, task_names
from ponder.tasks.base import Problem, content_hash, split_of

GENERATORS = ("arithmetic", "candles", "countdown", "decipher", "parentheses", "transpose")
ALL = {name: TaskSettings(difficulty=(1, 2), languages=("en", "zh")) for name in GENERATORS}


def test_all_tasks_are_found_in_the_folder():
    assert {*GENERATORS, "file", "hub", "reasoning_gym"} <= set(task_names())
    assert all(get_task(name).name == name for name in task_names())


def test_train_and_held_out_problems_never_meet():
    held = {content_hash(problem) for problem in held_out(ALL, 200, seed=0)}
    stream = ProblemStream(ALL, "train", seed=0)
    assert len(held) == 200
    assert not held & {content_hash(stream[number]) for number in range(2000)}


@given(seed=st.integers(0, 2**63), number=st.integers(0, 2**40), split=st.sampled_from(["train", "test"]))
@settings(max_examples=40, deadline=None)
def test_a_problem_depends_on_seed_and_number_alone(seed, number, split):
    problem = ProblemStream(ALL, split, seed)[number]
    assert problem == ProblemStream(dict(reversed(ALL.items())), split, seed)[number]
    assert split_of(problem) == split


def test_a_problem_knows_its_task_by_the_name_in_the_recipe():
    tasks = {"countdown:easy": TaskSettings(), "countdown:hard": TaskSettings(difficulty=2)}
    stream = ProblemStream(tasks, "train", seed=0)
    drawn = [stream[number] for number in range(50)] + held_out(tasks, 20, seed=0)
    assert {problem.source for problem in drawn} == set(tasks)
    assert all(problem.source == ("countdown:easy", "countdown:hard")[problem.difficulty - 1] for problem in drawn)
    assert {problem.task for problem in drawn} == {"countdown"}  # the label changes neither split nor verifier


@given(content=st.text())
def test_a_problem_is_in_one_split_whatever_its_words(content):
    problems = [Problem("t", prompt, None, content, language) for prompt in "ab" for language in ("en", "zh")]
    assert len({split_of(problem) for problem in problems}) == 1
    assert len({content_hash(problem) for problem in problems}) == 1


def test_a_cursor_is_all_that_is_needed_to_go_on():
    stream = ProblemStream(ALL, "train", seed=1)
    first, cursor = stream.take(0, 20)
    second, end = stream.take(cursor, 20)
    again = ProblemStream(ALL, "train", seed=1)
    assert again.take(cursor, 20) == (second, end)
    assert cursor >= 20
    assert first + second != stream.take(20, 40)[0]


def test_a_step_holds_no_problem_twice():
    stream = ProblemStream({"countdown": TaskSettings()}, "test", seed=0)
    taken, cursor = stream.take(0, 100)
    assert len({content_hash(problem) for problem in taken}) == 100
    assert cursor > 100  # there were repetitions to pass over
    with pytest.raises(UsageError, match="prompts_per_step"):
        stream.take(0, 1000)


def test_weights_difficulties_and_languages_are_mixed():
    tasks = {
        "countdown": TaskSettings(weight=3, difficulty=(1, 3), languages=("en", "zh")),
        "arithmetic:hard": TaskSettings(weight=1, difficulty=8),
    }
    stream = ProblemStream(tasks, "train", seed=0)
    drawn = [stream[number] for number in range(1000)]
    names = Counter(problem.task for problem in drawn)
    assert 0.70 < names["countdown"] / 1000 < 0.80
    countdowns = [problem for problem in drawn if problem.task == "countdown"]
    assert all(count > 200 for count in Counter(problem.difficulty for problem in countdowns).values())
    assert all(count > 300 for count in Counter(problem.language for problem in countdowns).values())
    assert {problem.difficulty for problem in drawn if problem.task == "arithmetic"} == {8}


def test_held_out_problems_are_spread_evenly_and_repeat():
    held = held_out(ALL, 62, seed=3)
    assert sorted(Counter(problem.task for problem in held).values()) == [10, 10, 10, 10, 11, 11]
    assert held == held_out(ALL, 62, seed=3) != held_out(ALL, 62, seed=4)
    assert {split_of(problem) for problem in held} == {"test"}


def test_one_task_used_twice_gives_no_problem_twice():
    tasks = {"countdown:a": TaskSettings(), "countdown:b": TaskSettings()}
    assert len({content_hash(problem) for problem in held_out(tasks, 100, seed=0)}) == 100


def test_too_few_held_out_problems_are_told():
    with pytest.raises(UsageError, match=re.escape("tasks.countdown: only")):
        held_out({"countdown": TaskSettings()}, 2000, seed=0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("countdwn", TaskSettings(), "did you mean `countdown`"),
        ("zzzzzz", TaskSettings(), "there are arithmetic"),
        ("countdown", TaskSettings(difficulty=9), r"tasks.countdown.difficulty must lie in 1..6"),
        ("countdown", TaskSettings(difficulty=0), r"tasks.countdown.difficulty"),
        ("countdown", TaskSettings(difficulty=(3, 2)), r"tasks.countdown.difficulty"),
        ("countdown", TaskSettings(languages=("fr",)), r"tasks.countdown.languages must name some of en, zh"),
        ("countdown", TaskSettings(languages=()), r"tasks.countdown.languages"),
        ("countdown", TaskSettings(path="x"), r"takes no path or options"),
        ("countdown", TaskSettings(options={"a": 1}), r"takes no path or options"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(UsageError, match=message):
        ProblemStream({name: settings}, "train", seed=0)


def test_no_tasks_at_all():
    with pytest.raises(UsageError, match="at least one"):
        held_out({}, 1, seed=0)
