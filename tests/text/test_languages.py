"""Which words count, and for which language; what the detector may and may not decide."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import UsageError
from ponder.mini import world as mini_world
from ponder.mini.traces import Narrator
from ponder.mini.world import MiniWorld
from ponder.model.parser import split_thinking
from ponder.text.languages import (
    CERTAINTY,
    LANGUAGES,
    MIN_LETTERS,
    consistency,
    count_words,
    detected_language,
    dominant_language,
)

FRENCH = "Donc la réponse est cinq parce que nous avons trois pommes."
ENGLISH = "So the answer is five because we have three apples left."


@pytest.mark.parametrize(
    ("text", "target", "counts"),
    [
        ("we add two numbers", "en", (4, 4)),
        ("we add two numbers", "zh", (0, 4)),
        ("我们先算", "zh", (4, 4)),
        ("我们先算", "en", (0, 4)),
        ("我们 then 先算", "zh", (4, 5)),
        ("we don't know", "en", (3, 3)),
        ("сначала сложим числа then", "ru", (3, 4)),
        ("ثم نجمع العددين", "ar", (3, 3)),
        ("पहले दोनों संख्याएँ", "hi", (3, 3)),
        ("먼저 두 수를 더한다", "ko", (4, 4)),
        ("먼저 두 수를 then", "ko", (3, 4)),
        ("ｗｅ ａｄｄ", "en", (2, 2)),  # full width
        ("ab\u200bcd", "en", (1, 1)),  # an invisible character parts no word
    ],
)
def test_words_by_script(text: str, target: str, counts: tuple[int, int]) -> None:
    assert count_words(text, target) == counts


@pytest.mark.parametrize(
    "text",
    [
        "3+5=8, 12.5%",
        "x + y = z, f(x)",
        "```python\nprint(value)\n```",
        "```\nnever closed",
        "`print`",
        "$a \\text{ and } b$",
        "$$\nlong formula\n$$",
        "\\(sum over all\\) \\[ another one \\]",
        "\\begin{align} left and right \\end{align}",
        "\\frac \\boxed",
        "https://example.org/some/path www.example.org",
        "x1 a_b foo_bar 3rd utf8",
        "sin log gcd",
        "ABC ABCD LCM",
        "πr α β",
        "... !? -- 、。「」",
        "",
    ],
)
def test_what_counts_for_no_language(text: str) -> None:
    for target in ("en", "zh"):
        assert count_words(text, target) == (0, 0)
    assert consistency(text, "en") is None
    assert dominant_language(text) is None


def test_dollars_are_money_unless_they_embrace_a_formula() -> None:
    assert count_words("It costs $5 and he has $7 left", "en") == (6, 6)
    assert count_words("an amount of $x+y$ dollars", "en") == (4, 4)
    assert count_words("so \\boxed{six}", "en") == (2, 2)


def test_long_capitals_are_words() -> None:
    assert count_words("WRONG ABC", "en") == (1, 1)


def test_kana_make_a_sentence_japanese() -> None:
    japanese, chinese = "これは問題です。", "我们先算总数再检查答案。"
    assert count_words(japanese, "ja") == (4, 4)  # これは, 問, 題, です: three kana a word
    assert count_words(japanese, "zh") == (0, 4)
    assert consistency(japanese + chinese, "zh") == 11 / 15
    assert consistency(japanese + chinese, "ja") == 4 / 15
    assert consistency("正解。" + japanese, "ja") == 1.0  # too short to be judged Chinese
    assert (dominant_language(japanese), dominant_language(chinese)) == ("ja", "zh")


def test_scripts_without_spaces_count_by_length() -> None:
    assert count_words("สวัสดีครับ", "th") == (2, 2)
    assert count_words("สวัสดีครับผ", "th") == (3, 3)


def test_whole_sentences_are_judged_where_a_script_is_shared() -> None:
    assert count_words(FRENCH, "en") == (0, 11)
    assert count_words(FRENCH, "fr") == (11, 11)
    assert count_words(ENGLISH, "en") == (11, 11)
    assert count_words(ENGLISH, "fr") == (0, 11)
    assert count_words(f"{ENGLISH} {FRENCH}", "en") == (11, 22)
    assert consistency("Сначала найдём, сколько яблок осталось в корзине.", "uk") == 0.0
    assert [dominant_language(text) for text in (FRENCH, ENGLISH)] == ["fr", "en"]


def test_short_sentences_count_as_the_targets() -> None:
    short = "Donc la réponse."
    assert sum(map(str.isalpha, short)) < MIN_LETTERS
    assert consistency(short, "en") == consistency(short, "fr") == 1.0
    assert consistency(f"{FRENCH} {short}", "en") == 3 / 14
    assert dominant_language(short) is None
    assert dominant_language(f"{FRENCH} Donc. {short}") == "fr"  # goes with the sentences that can be judged
    assert dominant_language("Donc la réponse. Nous avons trois.") == "fr"  # too short apart, long enough together


def test_formulas_do_not_lend_a_sentence_letters() -> None:
    assert consistency("Donc $abcdefghijklmnopqrstuvwxyz$ est vrai", "en") == 1.0


def test_the_dominant_language_is_that_of_most_words() -> None:
    assert dominant_language(f"{ENGLISH} 我们算") == "en"
    assert dominant_language(f"{ENGLISH} 我们先算总数再检查答") == "en"
    assert dominant_language(f"{ENGLISH} 我们先算总数再检查答案了") == "zh"
    assert dominant_language(f"{ENGLISH} {FRENCH} {FRENCH.replace('cinq', 'six')}") == "fr"


def test_a_language_with_its_region() -> None:
    assert consistency("我们", "zh-CN") == consistency("我们", "zh_Hans") == consistency("我们", "ZH") == 1.0


@pytest.mark.parametrize("call", [count_words, consistency])
def test_an_unknown_language_is_named(call: Callable[[str, str], Any]) -> None:
    with pytest.raises(UsageError, match="`tlh`"):
        call("text", "tlh")


TEXTS = st.text(max_size=80) | st.text(alphabet="ab c我カ3$`\\()[]{}_.!\n'é", max_size=80)


@given(text=TEXTS, target=st.sampled_from(sorted(LANGUAGES)))
def test_counts_are_counts_whatever_the_text(text: str, target: str) -> None:
    counts = count_words(text, target)
    assert 0 <= counts.target <= counts.all
    share = consistency(text, target)
    assert share is None if counts.all == 0 else share == counts.target / counts.all
    assert (dominant_language(text) is None) or counts.all > 0


@given(st.lists(st.sampled_from(["so we add", "我们", "3+5=8", "x_1", "сложим"]), max_size=12))
def test_words_add_up_over_sentences(pieces: list[str]) -> None:
    sizes = {"so we add": (3, 3), "我们": (0, 2), "3+5=8": (0, 0), "x_1": (0, 0), "сложим": (0, 1)}
    expected = tuple(sum(sizes[piece][i] for piece in pieces) for i in (0, 1))
    assert count_words(". ".join(pieces), "en") == expected


@given(text=TEXTS)
def test_every_word_has_a_language_of_its_script(text: str) -> None:
    """What the dominant language claims, counting for it confirms in part."""
    language = dominant_language(text)
    if language is not None:
        assert count_words(text, language).target > 0


@pytest.mark.parametrize("piece", ["\\(", "\\[", "$", "$$", "`", "\\begin{a}", "a", "a_", "http://", "é", "汉"])
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    started = time.process_time()
    count_words(piece * 10_000, "zh")
    assert time.process_time() - started < 5


MIXTURE = {
    "tasks": {
        name: {1: 1.0} for name in ("countdown", "parentheses", "arithmetic", "candles", "transpose", "decipher")
    },
    "temperaments": {"hasty": 1.0, "brief": 1.0, "patient": 1.0, "careful": 1.0},
    "general_share": 0.0,
    "broken_share": 0.0,
}


def mini_consistencies(count: int) -> list[float | None]:
    world = MiniWorld(5, **MIXTURE)
    found = []
    for index in range(count):
        language = random.Random(f"5:{index}").choice(mini_world.LANGUAGES)
        found.append(consistency(split_thinking(world.document(index).reply).thinking, language))
    return found


def test_unmixed_mini_traces_are_consistent_and_mixed_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faithful(Narrator):
        def turn(self) -> str:
            return self.say("turn")

    assert min(share for share in mini_consistencies(600) if share is not None) < 1.0
    monkeypatch.setattr(mini_world, "Narrator", Faithful)
    assert set(mini_consistencies(600)) == {1.0}


def test_the_detector_is_loaded_only_where_it_is_needed() -> None:
    code = """
import sys
from ponder.text.languages import consistency, dominant_language
consistency("So the answer is five because we have three apples", "zh")
consistency("我们先算总数 let me try no. 再检查答案", "en")
dominant_language("我们先算总数再检查答案")
assert "py3langid" not in sys.modules
assert consistency("So the answer is five because we have three apples", "en") == 1
assert "py3langid" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)


def test_the_stated_error_rates_are_those_measured(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import language_detection

    page = (repository / "benchmarks" / "README.md").read_text(encoding="utf-8")
    measured = language_detection.measured()
    bands = {low: errors for low, errors in measured.items() if low >= MIN_LETTERS}
    for row, chosen in (("false alarms", "own"), ("misses", "foreign")):
        cells = re.search(rf"^\| {row} \|[^|]*\|(.*)\|$", page, re.MULTILINE)
        assert cells is not None
        written = []
        for errors in (getattr(errors, chosen) for errors in bands.values()):
            share = f"{100 * sum(errors) / len(errors):.1f}%" if any(errors) else "0"
            written.append(f"{share} of {len(errors)}")
        assert [cell.strip() for cell in cells.group(1).split("|")] == written
    assert not any(any(errors.own) for errors in measured.values())
    assert f"fewer than {MIN_LETTERS} letters" in (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert f"less than {CERTAINTY:.0%} sure" in (repository / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_whole_detector_knows_languages_that_the_reward_does_not() -> None:
    assert detected_language("Kila mtu ana haki ya kuishi kwa amani na furaha katika nchi yake.") == "sw"
    assert detected_language("Everyone has the right to live in peace in his own country.") == "en"
    assert detected_language("Ndiyo") is None
    assert detected_language("1 + 1 = 2") is None
