"""Data sets for supervised training: rendered, checked before the first step, and dealt out in batches.

The form of an example is the form of its later use: the prompt is encoded as a sampler would encode it, the reply apart
from it, and the end token that stops a sampler stands behind it with a loss of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from ponder.errors import RefusedError
from ponder.model.folder import LoadedModel
from ponder.model.parser import prompt_tail, split_thinking
from ponder.model.replies import reply_text
from ponder.model.templates import CHAT, render, template_text
from ponder.model.tokenizer import Tokenizer
from ponder.store import datasets
from ponder.training.packing import Example
from ponder.training.trainer import Trainer
from ponder.training.update import Trajectory

HELD_OUT_SHARE = 0.05
"""Share of the prompts whose replies are not trained on and give the held-out loss."""

MAX_HELD_OUT = 64
"""About the most examples held out, however many there are."""

_CHECKED_PROMPTS = 64


class Batches(Protocol):
    """What supervised steps learn from. A batch is a function of where it begins, so that is all a resume needs."""

    total_steps: int

    def take(self, cursor: int) -> tuple[list[Example], int]:
        """The batch that begins at `cursor`, and where the next one begins."""
        ...

    def epoch(self, cursor: int) -> float | None:
        """Passes over the data up to `cursor`; None where the data never end."""
        ...


# --- rendering --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """Rows as token ids, one example a row, and how many rows were left out for which reason."""

    rows: list[datasets.Example]
    examples: list[Example]
    left_out: Counter[str]


def render_rows(rows: Sequence[datasets.Example], template: str, tokenizer: Tokenizer, context: int) -> Rendered:
    """Put the template around each prompt and write each reply down, end token included.

    Raises `RefusedError` when nothing is left or the model has no end token, `UsageError` and `BrokenInputError` as the
    template does.
    """
    template = template if template == CHAT else template_text(template)  # read a file once
    rendered = Rendered([], [], Counter())
    for row in rows:
        if row.history and template != CHAT:
            rendered.left_out["earlier turns, which only the template `chat` can render"] += 1
            continue
        prompt = _prompt(row, template, tokenizer)
        reply = reply_text(row.thinking, row.answer, prompt)
        example = Example(tuple(tokenizer.encode_prompt(prompt)), (*tokenizer.encode(reply), end_token(tokenizer)))
        why = _why_left_out(row, prompt, reply, example, tokenizer, context)
        if why is not None:
            rendered.left_out[why] += 1
            continue
        rendered.rows.append(row)
        rendered.examples.append(example)
    if not rendered.examples:
        reasons = ", ".join(f"{count} for {why}" for why, count in rendered.left_out.most_common())
        raise RefusedError(f"no example of `data` is left to train on: {reasons or 'it holds none'}")
    return rendered


def _prompt(row: datasets.Example, template: str, tokenizer: Tokenizer) -> str:
    if row.history:
        return tokenizer.apply_chat_template([*row.history, {"role": "user", "content": row.prompt}])
    return render(template, row.prompt, tokenizer)


def _why_left_out(
    row: datasets.Example, prompt: str, reply: str, example: Example, tokenizer: Tokenizer, context: int
) -> str | None:
    if not example.prompt_ids:
        return "an empty prompt"
    if not row.answer.strip():
        return "an empty answer"
    if len(example.prompt_ids) + len(example.reply_ids) > context:
        return f"exceeding `context` ({context} tokens)"
    if any(token in tokenizer.eos_ids for token in example.reply_ids[:-1]):
        return "an end token inside the reply"
    split = split_thinking(reply, prompt_tail(prompt))
    if (split.thinking, split.answer) != (row.thinking.strip(), row.answer.strip()):
        return "tags that make thinking and answer read otherwise"
    return None


# --- the end token ----------------------------------------------------------------------------------------------------


def end_token(tokenizer: Tokenizer) -> int:
    """The token that ends a reply: the tokenizer's own end token where generation stops at it, else the first at which
    it stops. Raises `RefusedError` when there is none."""
    if not tokenizer.eos_ids:
        raise RefusedError("the model names no end token, so no reply could end: give its tokenizer an `eos_token`")
    own = tokenizer.settings.get("eos_token")
    own_id = None if own is None else tokenizer.token_id(own if isinstance(own, str) else own["content"])
    return own_id if own_id in tokenizer.eos_ids and own_id is not None else tokenizer.eos_ids[0]


def part_padding_from_end(model: LoadedModel) -> str | None:
    """Where padding and the end are one token, give padding another; returns its name, None where nothing was wrong.

    Nothing is padded here. But the folder that training leaves may be trained on elsewhere, where labels that equal
    padding are often masked: the model would unlearn to stop. Raises `RefusedError` when there is no token to spare.
    """
    tokenizer = model.tokenizer
    if tokenizer.pad_id not in tokenizer.eos_ids:
        return None
    taken = {*tokenizer.eos_ids, tokenizer.bos_id}
    special = {i: token.content for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    spare = sorted(special.keys() - taken, key=lambda i: ("pad" not in special[i], i))
    if not spare:
        raise RefusedError("padding and the end are the same token: give the model's tokenizer another `pad_token`")
    tokenizer.settings["pad_token"] = special[spare[0]]
    model.decoder.config = dataclasses.replace(model.decoder.config, pad_id=spare[0])
    return special[spare[0]]


# --- checks before the first step -------------------------------------------------------------------------------------


def check_before_training(
    rendered: Rendered, template: str, tokenizer: Tokenizer, generation: Mapping[str, Any]
) -> None:
    """What would make a model that never stops, or that is asked in another form than it was taught.

    Raises `RefusedError` for the first that is wrong.
    """
    end = end_token(tokenizer)
    if end == tokenizer.pad_id:
        raise RefusedError("padding and the end are the same token: give the model's tokenizer another `pad_token`")
    stated = generation.get("eos_token_id")
    if stated is not None and end not in (stated if isinstance(stated, list) else [stated]):
        raise RefusedError(
            f"replies end with token {end}, at which generation does not stop: mend `eos_token_id` in the model's "
            "generation_config.json"
        )
    for row, example in zip(rendered.rows, rendered.examples, strict=True):
        if example.reply_ids[-1] != end:
            raise RefusedError(f"example {row.id!r} has no end token in its labels: mend the model's tokenizer")
    every = max(1, len(rendered.rows) // _CHECKED_PROMPTS)
    for row, example in zip(rendered.rows[::every], rendered.examples[::every], strict=True):
        sampled = tuple(tokenizer.encode_prompt(_prompt(row, template, tokenizer)))
        reply = tokenizer.encode(reply_text(row.thinking, row.answer, _prompt(row, template, tokenizer)))
        if (*sampled, *reply, end) != (*example.prompt_ids, *example.reply_ids):
            raise RefusedError(
                f"example {row.id!r} is trained on other tokens than sampling with `template` would see: "
                "mend the model's tokenizer or chat template"
            )


# --- order and batches ------------------------------------------------------------------------------------------------


def hold_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(to train on, held out): about a twentieth, at most about 64, chosen by the prompt's hash.

    All replies to a prompt stay on one side. Nothing is held out where nothing would be left.
    """
    share = min(HELD_OUT_SHARE, MAX_HELD_OUT / max(1, len(examples)))
    kept = [example for example in examples if _place(example) >= share]
    if not kept:
        return list(examples), []
    return kept, [example for example in examples if _place(example) < share]


def _place(example: Example) -> float:
    """In [0, 1), a function of the prompt alone."""
    digest = hashlib.blake2b(repr(example.prompt_ids).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class ExampleBatches:
    """Examples, shuffled anew each epoch, in batches that each hold `tokens_per_step` tokens or little more.

    The order of an epoch is a function of (seed, epoch). With `epochs` the data end, and what is left behind the last
    full batch, where it is less than half of one, joins it; with `steps` the data come round as often as they must.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokens_per_step: int,
        seed: int,
        *,
        epochs: float | None = None,
        steps: int | None = None,
    ) -> None:
        """Exactly one of `epochs` and `steps`. Raises `ValueError` without examples."""
        if not examples:
            raise ValueError("there must be an example to train on")
        self.examples = examples
        self.tokens_per_step = tokens_per_step
        self.seed = seed
        self.end = None if epochs is None else max(1, round(epochs * len(examples)))
        self._lengths = [len(e.prompt_ids) + len(e.reply_ids) for e in examples]
        self._order = lru_cache(maxsize=2)(self._shuffled)
        self.total_steps = self._count_batches() if steps is None else steps

    def take(self, cursor: int) -> tuple[list[Example], int]:
        """See `Batches`."""
        stop = self._batch_end(cursor)
        return [self.examples[self._index(i)] for i in range(cursor, stop)], stop

    def epoch(self, cursor: int) -> float:
        """See `Batches`."""
        return cursor / len(self.examples)

    def _count_batches(self) -> int:
        cursor = count = 0
        while cursor != self.end:
            cursor = self._batch_end(cursor)
            count += 1
        return count

    def _batch_end(self, cursor: int) -> int:
        stop = self._filled(cursor, self.tokens_per_step)
        half = None if stop is None else self._filled(stop, self.tokens_per_step / 2)
        if stop is None or half is None:
            assert self.end is not None  # data that come round fill every batch
            return self.end
        return stop

    def _filled(self, cursor: int, tokens: float) -> int | None:
        """Where so many tokens from `cursor` on are reached; None where the data end before."""
        held = 0
        while held < tokens:
            if cursor == self.end:
                return None
            held += self._lengths[self._index(cursor)]
            cursor += 1
        return cursor

    def _index(self, cursor: int) -> int:
        epoch, place = divmod(cursor, len(self.examples))
        return self._order(epoch)[place]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self.examples)))
        random.Random(f"epoch {epoch} of the order {self.seed}").shuffle(order)
        return order


def mean_loss(trainer: Trainer, examples: Sequence[Example]) -> float:
    """Cross-entropy without a gradient, mean over all reply tokens, in nats; NaN for no examples."""
    if not examples:
        return math.nan
    logprobs = torch.cat(trainer.logprobs([Trajectory(example, (), 0.0) for example in examples], "policy"))
    return -float(logprobs.double().mean())
