from pathlib import Path

import pytest

from ponder.errors import BrokenInputError, UsageError
from ponder.model.parser import split_thinking
from ponder.model.templates import TEMPLATES, render, template_hash
from ponder.model.tokenizer import Tokenizer

DEEPSEEK_LIKE = "{% for m in messages %}<|User|>{{ m.content }}{% endfor %}{{ '<|Assistant|><think>\\n' }}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["hello"], 460)


def test_named_templates(tokenizer: Tokenizer) -> None:
    assert render("mini", "2+2?", tokenizer) == "User: 2+2?\nAssistant:"
    text = render("r1-zero", "2+2?", tokenizer)
    assert text.endswith("\nUser: 2+2?\nAssistant:")
    # [R1] Table 1: both pairs of tags are explained, thinking first
    places = [text.index(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    assert places == sorted(places)
    # and no method is asked for
    assert not any(word in text.lower() for word in ("step", "reflect", "verify", "check"))


def test_braces_and_placeholders_in_the_problem_stay(tokenizer: Tokenizer) -> None:
    problem = r"\frac{1}{2} and {prompt}"
    assert render("mini", problem, tokenizer) == f"User: {problem}\nAssistant:"


def test_own_text_and_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Q: {prompt}\nA:", encoding="utf-8")
    assert render("Q: {prompt}\nA:", "x", tokenizer) == render(str(tmp_path / "mine.txt"), "x", tokenizer) == "Q: x\nA:"
    assert template_hash("Q: {prompt}\nA:", tokenizer) == template_hash(str(tmp_path / "mine.txt"), tokenizer)


def test_chat_template_and_its_tail(tokenizer: Tokenizer) -> None:
    chatty = Tokenizer(tokenizer.backend, tokenizer.settings, DEEPSEEK_LIKE)
    text = render("chat", "2+2?", chatty)
    assert text == "<|User|>2+2?<|Assistant|><think>\n"
    split = split_thinking("hm</think>4", text)
    assert (split.thinking, split.answer) == ("hm", "4")
    with pytest.raises(UsageError, match="no chat template"):
        render("chat", "2+2?", tokenizer)


def test_hashes_tell_templates_apart(tokenizer: Tokenizer) -> None:
    chatty = Tokenizer(tokenizer.backend, tokenizer.settings, DEEPSEEK_LIKE)
    hashes = [template_hash(name, tokenizer) for name in TEMPLATES] + [template_hash("chat", chatty)]
    assert len(set(hashes)) == len(hashes)


def test_errors_name_what_is_valid(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none of r1-zero, mini, chat"):
        render("r1-zer0", "x", tokenizer)
    (tmp_path / "no.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"must hold \{prompt\}"):
        render(str(tmp_path / "no.txt"), "x", tokenizer)
    with pytest.raises(BrokenInputError, match="cannot read"):
        render(str(tmp_path), "x", tokenizer)
    with pytest.raises(BrokenInputError, match="cannot read"):
        render("a" * 5000, "x", tokenizer)
