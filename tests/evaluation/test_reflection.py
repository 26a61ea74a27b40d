"""Reflection words, and what counts as turning round."""

import pytest

from ponder.evaluation.reflection import ENGLISH, count_reflection_words, find_reflections, find_turn_round, turn_round
from ponder.store.rollouts import RolloutRow


def rollout(thinking: str, correct: bool = True, step: int = 5, answer: str | None = "8") -> RolloutRow:
    return RolloutRow(
        problem_id="p",
        task="arithmetic",
        prompt="User: 3+5\nAssistant:",
        sample=0,
        text=f"<think>{thinking}</think><answer>{answer}</answer>",
        thinking=thinking,
        answer=answer,
        rewards={},
        correct=correct,
        finish_reason="stop",
        length=10,
        step=step,
    )


def turned(row: RolloutRow) -> tuple[str, str] | None:
    found = turn_round(row)
    return None if found is None else (found.kind, row.text[found.start : found.end])


def test_each_of_the_papers_ten_words_counts_once() -> None:
    assert len(ENGLISH) == 10
    assert count_reflection_words(", ".join(ENGLISH)) == 10
    assert count_reflection_words(", ".join(ENGLISH).upper()) == 10


@pytest.mark.parametrize("text", ["waiter", "butter", "checked", "errors", "mistaken", "attribute", ""])
def test_parts_of_other_words_do_not_count(text: str) -> None:
    assert count_reflection_words(text) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("等等, 下一个", 1),
        ("但是不对, 下一个", 2),
        ("等等, 错误", 2),
        ("检查: 3+5=8 正确", 1),
        ("错了", 1),
        ("对", 0),
        ("wait等等check检查", 4),
    ],
)
def test_chinese_counterparts(text: str, count: int) -> None:
    assert count_reflection_words(text) == count


def test_positions_are_those_of_the_words() -> None:
    text = "so 8. Wait, 检查"
    assert [text[a:b] for a, b in find_reflections(text)] == ["Wait", "检查"]


def test_a_corrected_result_is_a_turn() -> None:
    assert turned(rollout("3+5=7. check: 3+5=8 so 8")) == ("correction", "check")
    assert turned(rollout("3 + 5 = 7. 等等, 3+5=8")) == ("correction", "等等")


def test_only_a_right_result_corrects_a_wrong_one() -> None:
    assert turned(rollout("3*9=20. check: 3*9=35")) is None  # from wrong to wrong
    assert turned(rollout("3+5=8. check: 3+5=9")) is None  # from right to wrong
    assert turned(rollout("3/0=1. check: 3/0=2")) is None


def test_a_new_course_ends_well() -> None:
    assert turned(rollout("3*4=12 no. wait, next: 3+4=8 yes")) is None
    assert turned(rollout("3*4=12 no. wait, next: 3*4=12, 12-5=7 yes")) is None  # the old way taken up again


def test_another_way_after_a_failed_one_is_a_turn() -> None:
    assert turned(rollout("3*4=12, 12-2=10 no. wait, next: 3+4=7, 7+2=9 yes")) == ("new course", "wait")


def test_a_check_that_confirms_is_no_turn() -> None:
    assert turned(rollout("3+5=8. check: 3+5=8 correct")) is None


def test_words_without_results_on_both_sides_are_no_turn() -> None:
    assert turned(rollout("wait, 3+5=8")) is None
    assert turned(rollout("3+5=8, but that is all")) is None
    assert turned(rollout("3+5=7, then 3+5=8")) is None


def test_wrong_and_unfinished_rollouts_are_no_turn() -> None:
    turning = "3+5=7. check: 3+5=8 so 8"
    assert turned(rollout(turning, correct=False)) is None
    assert turned(rollout(turning, answer=None)) is None


def test_decimals_and_sentences_do_not_make_false_corrections() -> None:
    assert turned(rollout("1.5+2=3.5. check 2.5+2=4.5 and 1.5+2=3.5, 1.5+2=3.5")) is None
    assert turned(rollout("it is 12. 3+4=7. check it: 3+4=7")) is None


def test_search_prefers_corrections_then_later_steps_then_short_ones() -> None:
    course = rollout("3*4=12 no. wait: 3+4=7 yes", step=9)
    early = rollout("3+5=7. check: 3+5=8", step=1)
    late = rollout("3+5=7. check: 3+5=8 and so it is 8", step=6)
    short = rollout("3+5=7. check: 3+5=8 so 8", step=6)

    def best(*rows: RolloutRow) -> RolloutRow:
        found = find_turn_round(rows)
        assert found is not None
        return found.rollout

    assert best(course, early) is early
    assert best(early, late) is late
    assert best(late, short, early, course) is short


def test_search_says_when_there_is_none() -> None:
    assert find_turn_round([rollout("3+5=8"), rollout("check: 3+5=8", correct=False)]) is None


def test_hostile_text_is_read_in_no_time() -> None:
    assert turned(rollout("check " + "(1+" * 30_000 + "=" * 30_000 + "wait " * 10_000)) is None
