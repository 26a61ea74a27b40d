"""Rollouts as the report shows them: the same problems before and after, and the one that turns round.

What is shown is chosen by rule or found by search, never picked, and shown as it was sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ponder.evaluation.html import Html, element, join, shorten
from ponder.evaluation.reflection import TurnRound, find_reflections, find_turn_round
from ponder.model.templates import PLACEHOLDER, TEMPLATES
from ponder.store.rollouts import RolloutRow, RolloutStore

SHOWN_PROBLEMS = 3
TEXT_LIMIT = 3_000
"""Characters of a completion beside its later self."""
TURN_LIMIT = 8_000
"""Characters of the completion that turns round."""

Frame = tuple[str, str]
"""The text before and after the problem in a prompt."""


@dataclass(frozen=True)
class Comparison:
    """One held-out problem answered before and after: the first of its samples at each time, and why it is shown."""

    why: str
    before: Sequence[RolloutRow]
    after: Sequence[RolloutRow]


def choose_comparisons(before: Sequence[RolloutRow], after: Sequence[RolloutRow]) -> list[Comparison]:
    """Three held-out problems, chosen by rule: one learned, one still failed, and the next in the order of their ids.

    Learned: right less than half of the time before and more than half after. Failed: the lowest rate after, where
    that is below a half. The first in the order of ids wins; where a kind does not exist the next in that order
    stands in.
    """
    early, late = _by_problem(before), _by_problem(after)
    order = sorted(early.keys() & late.keys())
    chosen: dict[str, str] = {}
    for problem in order:
        if _rate(early[problem]) < 0.5 < _rate(late[problem]):
            chosen[problem] = "The first, by id, that it fails before and solves after."
            break
    failing = [problem for problem in order if _rate(late[problem]) < 0.5 and problem not in chosen]
    worst = min(failing, key=lambda problem: _rate(late[problem]), default=None)
    rest = [problem for problem in order if problem not in chosen and problem != worst]
    for problem in rest[: SHOWN_PROBLEMS - len(chosen) - (worst is not None)]:
        chosen[problem] = "The next by id, whatever came of it."
    if worst is not None:
        chosen[worst] = "The one that it still fails most often."
    return [Comparison(why, early[problem], late[problem]) for problem, why in chosen.items()]


def comparisons_section(stage: str, template: str, store: RolloutStore) -> Html | None:
    """Held-out problems at the first and the last evaluation, side by side; None before the first one."""
    steps = store.steps(stage, "test")
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    before = list(store.iter_rollouts(stage, first, "test"))
    after = list(store.iter_rollouts(stage, last, "test"))
    comparisons = choose_comparisons(before, after)
    frame = _frame(template, before)
    when = f"at step {first} and at step {last}" if last != first else f"at step {first}"
    note = (
        f"Held-out problems {when}, the first sample of each, unedited. "
        "Which problems are shown is decided by a rule, stated with each."
    )
    if all(_rate(comparison.after) >= 0.5 for comparison in comparisons):
        note += " Every held-out problem is now solved at least half of the time."
    cards = [_comparison_card(comparison, frame, first, last) for comparison in comparisons]
    return element(
        "section", element("h2", "The same problems, before and after"), element("p", note, class_="note"), *cards
    )


def _comparison_card(comparison: Comparison, frame: Frame, first: int, last: int) -> Html:
    problem = comparison.before[0]
    sides = [_answer_card(f"step {first}", comparison.before)]
    if last != first:
        sides.append(_answer_card(f"step {last}", comparison.after))
    return element(
        "article",
        element("p", comparison.why, class_="note"),
        element("pre", _problem(problem.prompt, frame), class_="problem"),
        element("div", *sides, class_="sides"),
        class_="comparison",
    )


def _answer_card(when: str, rollouts: Sequence[RolloutRow]) -> Html:
    shown = min(rollouts, key=lambda row: row.sample)
    right = sum(row.correct for row in rollouts)
    return element(
        "div",
        element("h3", when, " ", element("span", f"{right} of {len(rollouts)} samples right")),
        *_completion(shown),
        class_="side",
    )


def _completion(row: RolloutRow) -> list[Html]:
    if row.text_dropped:
        return [element("p", "Its text is no longer stored: the file had reached its size cap.", class_="note")]
    answer = "no answer" if row.answer is None else shorten(row.answer, TEXT_LIMIT) or "an empty answer"
    verdict = "right" if row.correct else "wrong"
    cut = ", cut at the length limit" if row.finish_reason == "length" else ""
    return [
        element("pre", shorten(row.thinking, TEXT_LIMIT) or "(no thinking)", class_="thinking"),
        element("p", element("b", answer), element("span", verdict), class_=f"answer {verdict}"),
        element("p", f"{row.length} tokens{cut}", class_="note"),
    ]


def turn_section(stage: str, template: str, store: RolloutStore) -> Html | None:
    """The rollout that turns round, found by search, or the plain statement that there is none."""
    count = store.count(stage)
    if not count:
        return None
    found = find_turn_round(store.iter_rollouts(stage))
    title = element("h2", "It checks itself and turns round")
    if found is None:
        text = (
            f"There is none among {count:,} stored rollouts: searched for one that ends right and has a reflection "
            "word between a wrong result and its correction, or between one way and another."
        )
        return element("section", title, element("p", text, class_="lead"))
    row = found.rollout
    neighbours = store.iter_rollouts(stage, row.step)
    kinds = {
        "correction": "a wrong result before the reflection word is worked out again after it, rightly",
        "new course": "after the reflection word it leaves one way for another",
    }
    note = (
        f"Found by search among {count:,} stored rollouts, shown as it is: {kinds[found.kind]}, and the answer is "
        f"right. Step {row.step}, sample {row.sample} of problem {row.problem_id}."
    )
    return element(
        "section",
        title,
        element("p", note, class_="note"),
        element("pre", _problem(row.prompt, _frame(template, neighbours)), class_="problem"),
        element("pre", _marked(found), class_="turn"),
    )


def _marked(turn: TurnRound) -> Html:
    """The whole completion, with its reflection words marked and the turn itself marked more strongly."""
    text = shorten(turn.rollout.text, max(TURN_LIMIT, turn.end))
    parts: list[object] = []
    position = 0
    for start, end in find_reflections(text):
        kind = "turning" if start == turn.start else None
        parts += [text[position:start], element("mark", text[start:end], class_=kind)]
        position = end
    return join(*parts, text[position:])


def _frame(template: str, rollouts: Iterable[RolloutRow]) -> Frame:
    """What stands around the problem in every prompt: the known template's words, else the lines that all share."""
    before, placeholder, after = TEMPLATES.get(template, template).partition(PLACEHOLDER)
    if placeholder:
        return before, after
    prompts = sorted({row.prompt for row in rollouts if not row.text_dropped})
    if len(prompts) < 2:
        return "", ""
    lines = [prompt.split("\n") for prompt in prompts]
    first = itertools.takewhile(_alike, zip(*lines, strict=False))
    last = itertools.takewhile(_alike, zip(*(own[::-1] for own in lines), strict=False))
    return "".join(f"{line[0]}\n" for line in first), "".join([f"\n{line[0]}" for line in last][::-1])


def _alike(values: tuple[str, ...]) -> bool:
    return len(set(values)) == 1


def _problem(prompt: str, frame: Frame) -> str:
    before, after = frame
    if prompt.startswith(before) and prompt.endswith(after) and len(before) + len(after) <= len(prompt):
        prompt = prompt[len(before) : len(prompt) - len(after)]
    return shorten(prompt, TEXT_LIMIT)


def _by_problem(rows: Iterable[RolloutRow]) -> dict[str, list[RolloutRow]]:
    found: dict[str, list[RolloutRow]] = {}
    for row in rows:
        found.setdefault(row.problem_id, []).append(row)
    return found


def _rate(rows: Sequence[RolloutRow]) -> float:
    return fmean(row.correct for row in rows)
