"""The one parser: every rule of its docstring by a hand-worked case, and any cut of a stream against the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.model.parser import TAGS, Split, ThinkingSplitter, prompt_tail, split_thinking

# text, tail, thinking, answer, well formed, answer tags; an answer of None is an unfinished text
CASES = [
    # R1-Zero's form, tidy and with white space
    ("<think>2+2 is 4</think><answer>4</answer>", "", "2+2 is 4", "4", True, True),
    (" \n<think>\na\n b\n</think>\n\n<answer>\n 4 \n</answer>\n", "", "a\n b", "4", True, True),
    # R1's form: a free answer
    ("<think>hm</think>\n\nIt is **4**.\n", "", "hm", "It is **4**.", True, False),
    # the prompt opened the block
    ("hm</think>4", "User: 2+2?\nAssistant: <think>\n", "hm", "4", True, False),
    ("hm</think><answer>4</answer>", "<think>", "hm", "4", True, True),
    ("still at it", "<think>\n", "still at it", None, False, False),
    # the prompt closed an empty block
    ("It is 4.", "<think>\n\n</think>\n\n", "", "It is 4.", True, False),
    # tags elsewhere in the prompt open nothing
    ("It is 4.", "Write <think> first.\nAssistant:", "", "It is 4.", False, False),
    # an empty block
    ("<think></think>4", "", "", "4", True, False),
    ("<think>\n\n</think>\n<answer>4</answer>", "", "", "4", True, True),
    # unfinished
    ("<think>hm", "", "hm", None, False, False),
    ("<think>", "", "", None, False, False),
    ("<think>hm <answer>4</answer>", "", "hm <answer>4</answer>", None, False, False),
    ("<think>hm</think><answer>4", "", "hm", None, False, True),
    ("<think>hm</thin", "", "hm</thin", None, False, False),
    # nothing after the thinking
    ("<think>hm</think>\n", "", "hm", "", False, False),
    # no tags, no text
    ("It is 4 < 5.", "", "", "It is 4 < 5.", False, False),
    ("", "", "", "", False, False),
    # answer tags without thinking
    ("<answer>4</answer>", "", "", "4", False, True),
    ("I guess <answer>4</answer>", "", "", "4", False, True),
    # text where none belongs
    ("Sure. <think>hm</think>4", "", "", "Sure. <think>hm</think>4", False, False),
    ("<think>hm</think>So: <answer>4</answer>", "", "hm", "4", False, True),
    ("<think>hm</think><answer>4</answer> or 5", "", "hm", "4", False, True),
    # nested and repeated tags
    ("<think>a<think>b</think>4</think>", "", "a<think>b", "4</think>", False, False),
    ("<think>\n<think>b</think>4", "", "<think>b", "4", False, False),
    ("<think>b</think>4", "<think>", "<think>b", "4", False, False),
    ("<think>a</think><think>b</think><answer>4</answer>", "", "a", "4", False, True),
    ("<think>a<answer>3</answer>b</think><answer>4</answer>", "", "a<answer>3</answer>b", "4", False, True),
    ("<think>a</think><answer>3</answer><answer>4</answer>", "", "a", "3", False, True),
    ("<think>a</think><answer><answer>4</answer></answer>", "", "a", "<answer>4", False, True),
    ("<think>a</think></think>4", "", "a", "</think>4", False, False),
    # a close that closes nothing is plain text: the caller says when the prompt opened the block
    ("hm</think>4", "", "", "hm</think>4", False, False),
    # no tags at all, but alike
    ("<Think>a</Think><think >b", "", "", "<Think>a</Think><think >b", False, False),
]


@pytest.mark.parametrize(("text", "tail", "thinking", "answer", "well_formed", "answer_tags"), CASES)
def test_rules(text: str, tail: str, thinking: str, answer: str | None, well_formed: bool, answer_tags: bool) -> None:
    finished = answer is not None
    assert split_thinking(text, tail) == Split(thinking, answer, finished, well_formed, answer_tags)


# texts in which tags, begun tags and white space meet in every order
fragments = st.sampled_from([*TAGS, "<", "</", "<th", "</answer", "think>", ">", " ", "\n", "a", "<answer", "我", "4"])
texts = st.lists(fragments, max_size=14).map("".join)
tails = st.sampled_from(["", "<think>", "<think>\n", "x<think>\n</think>\n", "<think> </think> and then"])


@given(texts, tails, st.lists(st.integers(0, 60), max_size=8))
def test_any_cut_of_a_stream_gives_the_split_of_the_whole(text: str, tail: str, cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(text)]
    splitter = ThinkingSplitter(tail)
    pieces = []
    for start, end in zip([0, *ends], ends, strict=False):
        pieces += splitter.feed(text[start:end])
    pieces += splitter.finish()
    whole = split_thinking(text, tail)
    assert splitter.split == whole
    streamed = {"thinking": "", "answer": ""}
    for kind, piece in pieces:
        if kind == "restart":
            assert piece == ""
            streamed["answer"] = ""
        else:
            assert piece != ""
            streamed[kind] += piece
    assert streamed["thinking"] == whole.thinking
    if whole.finished:
        assert streamed["answer"] == whole.answer


@given(texts, tails)
def test_what_always_holds(text: str, tail: str) -> None:
    split = split_thinking(text, tail)
    assert split.finished == (split.answer is not None)
    assert split.thinking == split.thinking.strip()
    assert split.answer is None or split.answer == split.answer.strip()
    if split.well_formed:
        assert not any(tag in split.thinking + split.answer for tag in TAGS)
        opening = prompt_tail(tail).strip() or "<think>"
        close = "" if opening.endswith("</think>") else "</think>"
        answer = f"<answer>{split.answer}</answer>" if split.answer_tags else split.answer
        rebuilt = split_thinking(f"{opening}{split.thinking}{close}{answer}")
        assert rebuilt == split


def test_a_stream_speaks_as_soon_as_it_can() -> None:
    splitter = ThinkingSplitter()
    assert splitter.feed("<thi") == []
    assert splitter.feed("nk>I am") == [("thinking", "I am")]
    # the space may be the last of the block, and the bracket may begin a tag
    assert splitter.feed(" sure <") == [("thinking", " sure")]
    assert splitter.feed("= 3") == [("thinking", " <= 3")]
    assert splitter.feed("</think>\n\nfo") == [("answer", "fo")]
    assert splitter.feed("ur <answer>4") == [("answer", "ur"), ("restart", ""), ("answer", "4")]
    assert splitter.feed("</answer>") == []
    assert splitter.finish() == []


def test_the_tail_of_a_prompt_is_what_matters_to_the_parser() -> None:
    assert prompt_tail("Think in <think> tags.\nAssistant:") == ""
    assert prompt_tail("<|Assistant|><think>\n") == "<think>\n"
    assert prompt_tail("<think>\n\n</think>\n\n") == "<think>\n\n</think>\n\n"
    assert prompt_tail("a</think>") == ""
