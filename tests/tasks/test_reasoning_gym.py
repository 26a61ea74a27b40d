"""The adapter of reasoning-gym: judging needs no package, generating does."""

import sys

import pytest

from ponder.errors import UsageError
from ponder.recipe import TaskSettings
from ponder.tasks import ProblemStream, get_task
from ponder.tasks.base import Problem, split_of
from ponder.tasks.reasoning_gym import DATASETS, TASK


def problem(answer: str) -> Problem:
    return Problem("reasoning_gym", "", {"dataset": "chain_sum", "answer": answer}, "content")


@pytest.mark.parametrize(
    ("answer", "reference", "correct"),
    [
        ("1920", "1920", True),
        ("1,920.0", "1920", True),
        ("The answer is \\boxed{1920}", "1920", True),
        ("Bob", "bob", True),
        ("1 2\n3  4\n", "1 2\n3 4", True),
        ("1920 or 1921", "1920", False),
        ("9878 - 7958", "1920", False),
        ("192", "1920", False),
        ("True False", "True", False),
        ("12", "1 2", False),
        ("1 2 3 4", "1 2\n3 4", False),
        ("", "1920", False),
    ],
)
def test_only_the_stored_answer_is_right(answer, reference, correct):
    assert TASK.verify(answer, problem(reference)).correct is correct


def test_equal_answers_vote_together():
    assert TASK.vote_key("1,920", problem("1920")) == TASK.vote_key("\\boxed{1920.0}", problem("1920"))
    assert TASK.vote_key(" ", problem("1920")) is None


@pytest.mark.parametrize("name", ["game_of_life_halting", "knights_knaves", "countdown", "propositional_logic", ""])
def test_sets_whose_marks_cannot_be_trusted_are_not_offered(name):
    with pytest.raises(UsageError, match=r"tasks.reasoning_gym.options.dataset must be one of ab"):
        get_task("reasoning_gym", TaskSettings(options={"dataset": name}))


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match=r"pip install \"ponder\[reasoning-gym\]\""):
        get_task("reasoning_gym", TaskSettings(options={"dataset": "chain_sum"}))


def test_without_settings_it_cannot_generate():
    with pytest.raises(UsageError, match=r"options\.dataset"):
        TASK.generate(None, 1, "en")


@pytest.mark.filterwarnings("ignore")
def test_every_offered_set_pays_its_own_answer_and_no_other():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    for name in DATASETS:
        settings = {"reasoning_gym": TaskSettings(options={"dataset": name})}
        stream = ProblemStream(settings, "test", seed=0)
        for number in range(2):
            drawn = stream[number]
            right = drawn.reference["answer"]
            assert drawn == stream[number]
            assert split_of(drawn) == "test"
            assert TASK.verify(right, drawn).correct, name
            for wrong in ("", "x", f"{right} x", f"x {right}", f"{right} {right}", f"{right}\nnot that"):
                assert not TASK.verify(wrong, drawn).correct, (name, wrong)


@pytest.mark.filterwarnings("ignore")
def test_wrong_options_of_a_set_are_told():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    for options in ({"max_trms": 3}, {"max_terms": -3}):
        with pytest.raises(UsageError, match=r"tasks.reasoning_gym.options: chain_sum"):
            get_task("reasoning_gym", TaskSettings(options={"dataset": "chain_sum", **options}))
