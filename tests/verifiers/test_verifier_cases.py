"""Every verifier on the hard cases beside it, and on a few thousand answers that nobody would write."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import RefusedError
from ponder.evaluation.verifier_bench import Case, read_cases, run_case
from ponder.verifiers import get_verifier, verifier_names
from ponder.verifiers.base import ReferenceAnswerError

MIN_CASES = 25

BY_RULES = ("choice", "cipher", "grid", "ifeval", "json_value", "knights_knaves", "parentheses", "refusal", "text")
"""The verifiers that judge in this process, in no time."""

MAY_MISS = ("math",)
"""Verifiers that fail some right answers rather than pay a wrong one; the bench lists them."""


def cases() -> list[Case]:
    return [case for name in verifier_names() for case in read_cases(name)]


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.verifier}-{case.line}")
def test_a_hard_case_is_judged_rightly(case: Case) -> None:
    try:
        verdict = run_case(case)
    except RefusedError:
        pytest.skip("no sandbox works here")
    if case.correct and not verdict.correct and case.verifier in MAY_MISS:
        pytest.xfail(f"a known false negative: {case.note}")
    assert verdict.correct == case.correct, f"{case.note}: {verdict}"


@pytest.mark.parametrize("name", verifier_names())
def test_there_are_cases_of_both_kinds(name: str) -> None:
    known = read_cases(name)
    assert len(known) >= MIN_CASES
    assert {case.correct for case in known} == {True, False}
    assert len({(case.prediction, json.dumps(case.reference)) for case in known}) == len(known)


@pytest.mark.parametrize("name", BY_RULES)
def test_every_reference_of_a_case_is_right_itself(name: str) -> None:
    for case in read_cases(name):
        get_verifier(name).check_reference(case.reference)


@pytest.mark.parametrize("name", BY_RULES)
@pytest.mark.parametrize("reference", [None, True, 5, 0.5, "", [], [1], {}, {"answers": []}, {"a": {}}, "\x00", [[]]])
def test_a_reference_of_another_shape_is_an_error_in_words(name: str, reference: object) -> None:
    try:
        get_verifier(name).check_reference(reference)
    except ReferenceAnswerError as error:
        assert name in str(error) or "reference" in str(error)
    else:
        assert (name, reference) == ("cipher", "\x00") or reference not in ("", None, {}, [])


REFERENCES = {name: [case.reference for case in read_cases(name)] for name in BY_RULES}
PIECES = st.sampled_from(
    ["\\boxed{", "}", "\\text{", "(", ")", "[", "]", "{", '"', "A", "B", "and", " is a ", "knight", "\n", "```", "**",
     "<answer>", "</answer>", "\x00", "9" * 50, "\\\\", "$", "，", "Ⅷ", "٣", "'", ":", "I can't help", "-", "1e9999999"]
)  # fmt: skip


@settings(max_examples=100)
@given(st.sampled_from(BY_RULES), st.lists(PIECES | st.text(max_size=5), max_size=30), st.randoms())
def test_no_answer_makes_a_judge_raise(name: str, pieces: list[str], rng: random.Random) -> None:
    verifier, reference, answer = get_verifier(name), rng.choice(REFERENCES[name]), "".join(pieces)
    verdict = verifier.verify(answer, reference)
    assert isinstance(verdict.correct, bool)
    assert verdict.why
    assert verdict.status in ("judged", "unreadable")
    assert not (verdict.correct and verdict.status != "judged")
    assert verifier.verify(answer, reference) == verdict
    key = verifier.vote_key(answer, reference)
    assert key is None or isinstance(key, str)


LONG = [
    "(",
    "[",
    "{",
    "A ",
    "\\boxed{",
    "}",
    "*",
    "a*",
    "<<",
    "\n",
    "i can't ",
    "A is a knight, ",
    '"',
    "9",
    "```\n",
    "\x00",
]


@pytest.mark.parametrize("name", BY_RULES)
def test_judging_takes_time_in_proportion_to_the_answer(name: str) -> None:
    """A hundred thousand characters of one thing: seconds at most for all, where a quadratic rule would take hours."""
    reference = REFERENCES[name][0]
    started = time.process_time()
    for piece in LONG:
        get_verifier(name).verify(piece * (99_999 // len(piece)), reference)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", BY_RULES)
def test_equal_votes_are_equal_answers(name: str) -> None:
    """No wrong answer votes together with a right one."""
    verifier = get_verifier(name)
    for reference in {json.dumps(case.reference) for case in read_cases(name)}:
        known = [case for case in read_cases(name) if json.dumps(case.reference) == reference]
        known = [case for case in known if "<think>" not in case.prediction]
        right = {verifier.vote_key(case.prediction, case.reference) for case in known if case.correct} - {None}
        for case in known:
            if not case.correct:
                assert verifier.vote_key(case.prediction, case.reference) not in right


def test_the_fuzzer_runs(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "benchmarks" / "fuzz_verifiers.py"), "--answers", "70", "--seed", "3"]
    command += ["--json", str(tmp_path / "numbers.json"), "--verifiers", *BY_RULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "crashes 0" in done.stdout


def test_the_documentation_names_every_verifier(repository: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (repository / "docs").glob("verifiers*.md"))
    assert [name for name in verifier_names() if f"`{name}`" not in pages] == []
