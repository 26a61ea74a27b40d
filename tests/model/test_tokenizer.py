import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import BrokenInputError, UsageError
from ponder.model.parser import TAGS
from ponder.model.tokenizer import END, PAD, StreamDecoder, Tokenizer

TEXTS = [
    "User: Use 12, 7 and 130 to make 199.\nAssistant: <think>130 + 70 = 200, too many.</think> <answer>12</answer>",
    "用户：把 3 和 4 相加。助手：好的，等一下。3 + 4 = 7。",
    "Wait, let me check that again. The result is right, so the answer is right. 😀",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 600)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i], skip_special=False) for i in tokenizer.encode(text)]


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    tokenizer = Tokenizer.train(["a"], 460)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from([*TAGS, " ", "\n", "12", "199", "word", ", ", "。", "汉字", "é", "e\u0301", "\0"])))
def test_texts_of_this_kind_round_trip(parts: list[str]) -> None:
    text = "".join(parts)
    assert _trained.decode(_trained.encode(text)) == text


_trained = Tokenizer.train(TEXTS, 600)


def test_every_whole_number_below_200_is_one_token_wherever_it_stands(tokenizer: Tokenizer) -> None:
    for number in range(200):
        (token,) = tokenizer.encode(str(number))
        assert pieces(tokenizer, f"a {number}+({number} = {number}.").count(str(number)) == 3
        assert tokenizer.token_id(str(number)) == token
    assert pieces(tokenizer, "200 1999") == ["20", "0", " ", "199", "9"]


def test_pieces_carry_the_space_behind_them() -> None:
    tokenizer = Tokenizer.train(["let me see, let me see, let me see: 1 + 2 = 3; 1 + 2 = 3"] * 50, 600)
    assert pieces(tokenizer, "let me see, 1 + 2") == ["let ", "me ", "see", ", ", "1", " ", "+ ", "2"]


def test_ids_of_special_tokens_and_tags(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_ids, tokenizer.bos_id) == (0, (1,), None)
    assert [tokenizer.encode(tag) for tag in TAGS] == [[2], [3], [4], [5]]
    ids = tokenizer.encode(f"<think>a</think><answer>7</answer>{END}{PAD}")
    assert tokenizer.decode(ids) == "<think>a</think><answer>7</answer>"
    assert tokenizer.decode(ids, skip_special=False).endswith(END + PAD)
    assert tokenizer.vocab_size == max(tokenizer.backend.get_vocab().values()) + 1 <= 600


def test_training_is_deterministic_and_checks_its_size() -> None:
    assert Tokenizer.train(TEXTS, 600).backend.to_str() == Tokenizer.train(TEXTS, 600).backend.to_str()
    with pytest.raises(UsageError, match="vocab_size"):
        Tokenizer.train(TEXTS, 300)


def test_a_saved_folder_gives_equal_ids_here_and_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    chatty = Tokenizer(tokenizer.backend, tokenizer.settings, "{{ messages[0]['content'] }}")
    chatty.save(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_ids[0], ours.pad_id)
    assert len(theirs) == ours.vocab_size
    for text in [*TEXTS[:3], f"a  b\n\n 1999 汉字 é <think>{END}", ""]:
        assert ours.encode(text) == tokenizer.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
    assert ours.chat_template == chatty.chat_template


def test_chat_template_speaks_the_dialect_of_transformers(tokenizer: Tokenizer) -> None:
    template = (
        "{%- for m in messages %}\n"
        "    {%- if m.role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}\n"
        "    {%- if m.skip %}{% continue %}{% endif %}\n"
        "    {%- generation %}{{ m | tojson }}{% endgeneration %}{{ eos_token }}\n"
        "{%- endfor %}\n"
        "{% if add_generation_prompt %}A:{% if think is false %}<think></think>{% endif %}{% endif %}"
    )
    chatty = Tokenizer(tokenizer.backend, tokenizer.settings, template)
    messages = [{"role": "user", "content": "<é>"}]
    assert chatty.apply_chat_template(messages) == f"{json.dumps(messages[0], ensure_ascii=False)}{END}A:"
    assert chatty.apply_chat_template(messages, think=False).endswith("A:<think></think>")
    assert not chatty.apply_chat_template(messages, add_generation_prompt=False).endswith("A:")
    with pytest.raises(UsageError, match="no system prompt"):
        chatty.apply_chat_template([{"role": "system", "content": "x"}])
    with pytest.raises(BrokenInputError, match="broken"):
        Tokenizer(tokenizer.backend, {}, "{% if %}").apply_chat_template(messages)
    # what a template finds in a model's folder may not reach into Python
    with pytest.raises(UsageError, match="refuses"):
        Tokenizer(tokenizer.backend, {}, "{{ messages.__class__.__mro__ }}").apply_chat_template(messages)


def test_end_tokens_come_from_the_first_file_that_states_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).eos_ids == (1,)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.from_folder(tmp_path).eos_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert Tokenizer.from_folder(tmp_path).eos_ids == (8, 9)


def test_a_prompt_is_opened_once_where_the_tokenizer_opens_texts(tokenizer: Tokenizer) -> None:
    from tokenizers import processors

    assert tokenizer.encode_prompt("hello") == tokenizer.encode("hello")
    opening = Tokenizer(tokenizer.backend.from_str(tokenizer.backend.to_str()), {"bos_token": PAD, "eos_token": END})
    opening.backend.post_processor = processors.TemplateProcessing(
        single=f"{PAD} $A {END}", special_tokens=[(PAD, 0), (END, 1)]
    )
    assert opening.encode_prompt("hello") == [0, *tokenizer.encode("hello")]
    assert opening.encode_prompt(PAD + "hello") == [0, *tokenizer.encode("hello")]


def test_a_stored_limit_does_not_cut_what_is_encoded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    cutting = tokenizer.backend.from_file(str(tmp_path / "tokenizer.json"))
    cutting.enable_truncation(3)
    cutting.enable_padding(length=8)
    cutting.save(str(tmp_path / "tokenizer.json"))
    text = "a b c d e f"
    assert Tokenizer.from_folder(tmp_path).encode(text) == tokenizer.encode(text)
    assert Tokenizer.from_folder(tmp_path).encode("a") == tokenizer.encode("a")


def test_broken_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BrokenInputError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 459), max_size=30), st.data())
def test_a_stream_of_ids_gives_the_text_of_all_and_no_half_characters(ids: list[int], data: st.DataObject) -> None:
    decoder = StreamDecoder(_trained)
    out, start = [], 0
    while start < len(ids):
        step = data.draw(st.integers(1, 4))
        out.append(decoder.push(ids[start : start + step]))
        start += step
    out.append(decoder.finish())
    assert "".join(out) == _trained.decode(ids)


def test_a_character_of_several_tokens_comes_whole() -> None:
    decoder = StreamDecoder(_trained)
    ids = _trained.encode("a 🧮 b")
    out = [decoder.push([i]) for i in ids]
    assert len(ids) > 5
    assert "".join(out) == "a 🧮 b"
    assert all("\ufffd" not in piece for piece in out)
    cut = StreamDecoder(_trained)
    assert {cut.push([i]) for i in _trained.encode("🧮")[:-1]} == {""}
    assert cut.finish() == "\ufffd"
