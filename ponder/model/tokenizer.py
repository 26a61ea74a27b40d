"""Text to token ids and back, over the `tokenizers` library.

The same files that transformers writes and reads (`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`),
without importing transformers, which takes longer than everything else Ponder does at start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from ponder.errors import BrokenInputError, UsageError
from ponder.model.parser import TAGS

PAD = "<|pad|>"
END = "<|end|>"

WHOLE_NUMBERS = range(200)
"""Numbers that a trained tokenizer spells with one token each: what small arithmetic needs to be learnable."""

_PIECES = r"\p{Han}|\p{L}+ ?|\p{N}{1,3}|[^\s\p{L}\p{N}]+ ?|\s+"
"""A word with the space behind it, digits by threes without one, punctuation with the space behind it.

Spaces trail rather than lead, so that a number is the same token at the start of a line and in the middle of a sum.
"""

Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`, as chat templates expect."""


class Tokenizer:
    """A tokenizer with what the model's folder says about it: end tokens, padding, chat template."""

    def __init__(
        self,
        backend: Backend,
        settings: Mapping[str, Any],
        chat_template: str | None = None,
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        """`settings` is the content of tokenizer_config.json; `eos_ids` defaults to its `eos_token`."""
        self.backend = backend
        self.settings = dict(settings)
        self.chat_template = chat_template
        own = self._special_id("eos_token")
        self.eos_ids = tuple(eos_ids) if eos_ids is not None else () if own is None else (own,)
        # a tokenizer.json may ask to cut or pad what it encodes, which would spoil rollouts in silence
        self.backend.no_truncation()
        self.backend.no_padding()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read a Hugging Face folder. Raises `BrokenInputError` when it has no usable tokenizer.json."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BrokenInputError(f"{folder} has no tokenizer.json: give a model folder that holds its tokenizer")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise BrokenInputError(f"{path} is not a tokenizer: {error}") from error
        settings = _read_object(folder / "tokenizer_config.json")
        return cls(backend, settings, _chat_template(folder, settings), _stated_eos_ids(folder))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (PAD, END)) -> Tokenizer:
        """Train a byte-level BPE that spells any Unicode text.

        Ids: the special tokens (the first pads, the second ends a text), the four tags of `ponder.model.parser` (these
        stay in decoded text), 256 bytes, the whole numbers below 200, then merges by frequency up to `vocab_size`
        tokens; fewer where the texts hold no more. Raises `UsageError` when `vocab_size` has no room for what must be
        there.
        """
        numbers = _number_merges()
        fixed = len(special_tokens) + len(TAGS) + 256 + len(numbers)
        if vocab_size < fixed:
            raise UsageError(f"shape.vocab_size ({vocab_size}) must be at least {fixed}: bytes, numbers and tags")
        merges = _learn_merges(texts, vocab_size - fixed)
        tokens = [*special_tokens, *TAGS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokens += [left + right for left, right in (*numbers, *merges)]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        backend = Backend(models.BPE(vocab=vocabulary, merges=[*numbers, *merges]))
        backend.pre_tokenizer = _pre_tokenizer()
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special_tokens])
        backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": special_tokens[0],
            "eos_token": special_tokens[1],
            "clean_up_tokenization_spaces": False,
        }
        return cls(backend, settings)

    def save(self, folder: str | Path) -> None:
        """Write the files that transformers' AutoTokenizer and `from_folder` read.

        Beside a config of `model_type` qwen2, transformers 5 splits words as Qwen2 does, whatever tokenizer.json says:
        a newly trained tokenizer belongs with the llama or qwen3 family.
        """
        folder = Path(folder)
        self.backend.save(str(folder / "tokenizer.json"))
        # the template has a file of its own, where people can read it
        settings = {k: v for k, v in self.settings.items() if k != "chat_template"}
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows."""
        size: int = self.backend.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def pad_id(self) -> int | None:
        """The padding token, where the folder names one."""
        return self._special_id("pad_token")

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text, where the folder names one; whether it is used is another matter."""
        return self._special_id("bos_token")

    def token_id(self, token: str) -> int | None:
        """The id of one token by its spelling in the vocabulary; None if there is none."""
        found: int | None = self.backend.token_to_id(token)
        return found

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Ids of a text. `add_special` lets the tokenizer frame it as its authors chose, e.g. with an opening token."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt to be continued: opened with the opening token if this tokenizer uses one, never closed."""
        ids = self.encode(text)
        return [*self._opening, *ids] if ids[:1] != self._opening else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD. Tags of thinking and answer are not special."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as the model was trained to see it.

        `variables` reach the template (e.g. `enable_thinking`). Raises `UsageError` when the model has no chat
        template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise UsageError("this model has no chat template: set `template` to a text with {prompt}, or to r1-zero")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: _content(self.settings[name]) for name in names if self.settings.get(name)}
        try:
            return self._compiled_template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **{**tokens, **variables}
            )
        except TemplateError as error:
            raise UsageError(f"the model's chat template refuses these messages: {error}") from error

    def _special_id(self, name: str) -> int | None:
        token = self.settings.get(name)
        return None if token is None else self.token_id(_content(token))

    @cached_property
    def _opening(self) -> list[int]:
        return [i for i in self.encode("", add_special=True)[:1] if i == self.bos_id]

    @cached_property
    def _compiled_template(self) -> Any:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.chat_template or "")
        except TemplateError as error:
            raise BrokenInputError(f"the model's chat template is broken: {error}") from error


class StreamDecoder:
    """Decodes ids as they come, never emitting half a character.

    The pieces of `push` and `finish`, joined, are what `Tokenizer.decode` makes of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # the last emitted ids stay in front as context: some tokenizers drop the space before a text's first word
        self._ids: list[int] = []
        self._num_emitted = 0

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; empty while a character is unfinished."""
        self._ids += ids
        new = self._new_text()
        return "" if new.endswith("\ufffd") else self._emit(new)

    def finish(self) -> str:
        """What was held back: an unfinished character, as U+FFFD."""
        return self._emit(self._new_text())

    def _new_text(self) -> str:
        context = self._tokenizer.decode(self._ids[: self._num_emitted], self._skip_special)
        return self._tokenizer.decode(self._ids, self._skip_special)[len(context) :]

    def _emit(self, text: str) -> str:
        if text:
            self._ids = self._ids[self._num_emitted :]
            self._num_emitted = len(self._ids)
        return text


def _number_merges() -> list[tuple[str, str]]:
    """Merges that make each of `WHOLE_NUMBERS` one token, in an order under which none gets in another's way.

    BPE joins the pair of lowest rank first. In 110 to 119 both (1, 1) and (1, x) apply and only the first leads on,
    and so with (1, x) against (x, y) in 100 to 199: hence 11 first, then the other numbers in order.
    """
    numbers = sorted((str(n) for n in WHOLE_NUMBERS if n > 9), key=lambda s: (len(s), s != "11", s))
    return [(s[:-1], s[-1]) for s in numbers]


def _learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The `count` merges that byte-pair training finds in texts without their ASCII digits, best first."""
    backend = Backend(models.BPE())
    without_digits = pre_tokenizers.Split(Regex("[0-9]+"), behavior="removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([without_digits, _pre_tokenizer()])
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(_without_tags(texts), trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _without_tags(texts: Iterable[str]) -> Iterator[str]:
    """The stretches between tags, which are tokens already."""
    for text in texts:
        for tag in TAGS:
            text = text.replace(tag, "\0")
        yield from text.split("\0")


def _pre_tokenizer() -> Any:
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenInputError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise BrokenInputError(f"{path} must hold a JSON object")
    return value


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The folder's chat template: a file of its own in newer folders, a setting in older ones."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def _stated_eos_ids(folder: Path) -> tuple[int, ...] | None:
    """`eos_token_id` of generation_config.json, else of config.json; None where neither says."""
    for name in ("generation_config.json", "config.json"):
        stated = _read_object(folder / name).get("eos_token_id")
        if stated is not None:
            return tuple(stated) if isinstance(stated, list) else (int(stated),)
    return None


def _content(token: str | Mapping[str, Any]) -> str:
    """A special token's text: settings hold it bare or as a serialised AddedToken."""
    return token if isinstance(token, str) else str(token["content"])


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as chat templates expect it: readable, not escaped for HTML as jinja's own filter is."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`, by which templates mark the assistant's words: rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
