"""The parser reads back what `reply_text` writes, whatever the end of the prompt has opened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.model.parser import TAGS, prompt_tail, split_thinking
from ponder.model.replies import reply_text

PROMPTS = [
    "",
    "User: hi\nAssistant:",
    "Assistant: <think>",
    "Assistant: <think>\n",
    "Assistant: <think>\n\n</think>\n\n",
]

text = st.text().map(str.strip).filter(lambda value: not any(tag in value for tag in TAGS))


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("User: hi\nAssistant:", "<think>\nhm\n</think>\n\n5"),
        ("Assistant: <think>\n", "hm\n</think>\n\n5"),
        ("Assistant: <think>", "\nhm\n</think>\n\n5"),
        ("Assistant: <think>\n\n</think>\n\n", "5"),
    ],
)
def test_the_form_follows_the_prompts_end(prompt: str, written: str) -> None:
    assert reply_text("hm", "5", prompt) == written


@given(text, text.filter(bool), st.sampled_from(PROMPTS))
def test_the_parser_reads_back_what_was_written(thinking: str, answer: str, prompt: str) -> None:
    split = split_thinking(reply_text(thinking, answer, prompt), prompt_tail(prompt))
    assert split.answer == answer
    assert split.well_formed
    assert split.thinking == ("" if prompt.endswith("</think>\n\n") else thinking)
