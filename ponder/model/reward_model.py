"""A reward model: a decoder with a scalar head on the last token's hidden state.

What is scored is the prompt, rendered with the model's own template, then the final answer alone or the whole reply,
then the end token. Its folder is that of a `*ForSequenceClassification` model with one label, which transformers loads
as it is, and `reward.json` beside it, which says how to use it.

Sources: [R1] 3.1, B.2 (helpful models judge the final summary only, the safety model the whole reply).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.errors import BrokenInputError, UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder, Linear, PackedAttention, Packing
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import (
    CONFIG,
    LoadedModel,
    build_decoder,
    end_tokens,
    open_weights,
    read_object,
    rename_to_hf,
    replacing_folder,
    write_json,
    write_shards,
)
from ponder.model.parser import prompt_tail, split_thinking
from ponder.model.templates import CHAT, render, template_text
from ponder.model.tokenizer import Tokenizer

CARD = "reward.json"
"""How the scores are made and what they are worth: kind, score, template, norm, and the held-out figures."""

SCORING_BUDGET = 8192
"""Rows, in tokens, of one forward pass where nothing else is said."""

HEAD = "score.weight"
"""transformers' name for the scalar head."""


class Scored(NamedTuple):
    """What a score is given to, as token ids: the rendered prompt, and what follows it up to the end token."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Of prompt and reply together."""
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True)
class Norm:
    """What raw scores of held-out replies looked like; they give scores of different models one unit."""

    mean: float = 0.0
    deviation: float = 1.0
    """Standard deviation."""
    lowest: float = 0.0

    @classmethod
    def of(cls, raw: Sequence[float]) -> Norm:
        """The norm of at least two raw scores."""
        deviation, mean = torch.std_mean(torch.tensor(raw, dtype=torch.float64))
        return cls(float(mean), float(deviation), min(raw))


def put_scalar_head(decoder: Decoder) -> Decoder:
    """Give a decoder a head (1, d), of zeros, in place of its own, so that it scores sequences at their last token.

    It is what of a reward model learns; `RewardModel` knows the texts around it. Changes the decoder and returns it.
    """
    decoder.head = Linear(decoder.config.hidden_size, 1)
    nn.init.zeros_(decoder.head.weight)
    # a config tells of language models' heads alone: there is none
    decoder.config = dataclasses.replace(decoder.config, tied_embeddings=True)
    return decoder


def score_rows(decoder: Decoder, rows: Tensor) -> Tensor:
    """Final hidden states (B, d) of last tokens -> raw scores (B,), in float32 or better."""
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return F.linear(precise, decoder.head_weight.to(precise.dtype)).squeeze(-1)


class RewardModel(nn.Module):
    """A decoder with a scalar head; `scores` is the raw forward pass, `score_replies` what a reward asks for."""

    norm: Norm
    figures: Mapping[str, float]

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        kind: Literal["pairwise", "pointwise"],
        score: Literal["answer", "reply"],
        template: str,
    ) -> None:
        """Takes the decoder over; its own output head is dropped. The scalar head is zero until `initialise`.

        Raises `UsageError` for a model that only transformers can run, or without an end token.
        """
        super().__init__()
        if isinstance(decoder, FallbackDecoder):
            raise UsageError(f"model: a scalar head needs a llama, qwen2 or qwen3 model, not {decoder.config.family}")
        if not tokenizer.eos_ids:
            raise UsageError("model: its tokenizer names no end token, at which a reward model reads its score")
        self.decoder = put_scalar_head(decoder)
        self.tokenizer = tokenizer
        self.kind = kind
        self.score = score
        self.template = template if template == CHAT else template_text(template)  # a folder must not need a file
        self.norm = Norm()
        self.figures = {}

    @classmethod
    def on(cls, model: LoadedModel, seed: int, **how: Any) -> RewardModel:
        """A new reward model on a base: `how` as in the constructor, the head drawn from the seed."""
        made = cls(model.decoder, model.tokenizer, **how)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(made.decoder.head_weight, 0.0, made.decoder.config.initializer_range, generator=generator)
        return made

    # --- scoring ---------------------------------------------------------------------------------------------------

    def scores(self, examples: Sequence[Scored]) -> Tensor:
        """Raw scores (B,), differentiable."""
        device = self.decoder.head_weight.device
        tokens, packing, ends = pack_scored(examples)
        packing = packing.to(device)
        hidden = self.decoder.hidden(tokens.to(device), packing.positions, PackedAttention(packing))
        return score_rows(self.decoder, hidden[ends.to(device)])

    @torch.no_grad()
    def raw_scores(self, examples: Sequence[Scored], budget: int = SCORING_BUDGET) -> list[float]:
        """Raw scores without a gradient, at most `budget` rows at a time."""
        found: list[float] = []
        for part in micro_batches(examples, budget):
            found += self.scores(part).tolist()
        return found

    def score_replies(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        """Normalised scores: (raw - mean) / deviation, with mean and deviation of the held-out replies.

        `prompts` are what the user asked, before any template. `replies` are whole, with the block of thinking that
        they or their prompt opened (`prompt_tail` of the rendered prompt, then the completion). Where the model scores
        the answer only, a reply without a whole one gets the lowest score of any held-out reply: what the model never
        saw must not earn more than what it saw and disliked. Texts longer than the model's context lose their
        beginning. Raises `UsageError` for scores that are not finite, as fp16 may give them.
        """
        examples = [self.example(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        longest = self.decoder.config.max_positions
        raw = self.raw_scores([_shortened(e, longest) for e in examples if e is not None])
        if not all(map(math.isfinite, raw)):
            raise UsageError("precision: a reward model's scores are not finite; where it is fp16, take bf16 or fp32")
        scores, lowest, norm = iter(raw), self.norm.lowest, self.norm
        return [((lowest if e is None else next(scores)) - norm.mean) / norm.deviation for e in examples]

    def example(self, prompt: str, reply: str) -> Scored | None:
        """What is scored of a prompt, before any template, and a whole reply; None when there is no answer to score."""
        if self.score == "answer":
            reply = split_thinking(reply).answer or ""
            if not reply:
                return None
        rendered = render(self.template, prompt, self.tokenizer)
        # a whole reply opens its own block of thinking, and an answer alone has none
        rendered = rendered.removesuffix(prompt_tail(rendered))
        end = self.tokenizer.eos_ids[0]
        return Scored(tuple(self.tokenizer.encode_prompt(rendered)), (*self.tokenizer.encode(reply), end))


def micro_batches(examples: Sequence[Scored], budget: int) -> Iterator[list[Scored]]:
    """In order, at most `budget` rows together, as `pack_scored` packs them; a longer example comes alone."""
    batch: list[Scored] = []
    rows = 0
    for example in examples:
        shares = bool(batch) and batch[-1].prompt_ids == example.prompt_ids
        cost = len(example.reply_ids) if shares else example.num_tokens
        if batch and rows + cost > budget:
            yield batch
            batch, rows, cost = [], 0, example.num_tokens
        batch.append(example)
        rows += cost
    if batch:
        yield batch


def pack_scored(examples: Sequence[Scored]) -> tuple[Tensor, Packing, Tensor]:
    """Token ids (N,) without padding, how they lie, and the row (B,) of each example's last token.

    Neighbours with the same prompt share its rows.
    """
    groups: list[tuple[int, list[int]]] = []
    tokens: list[int] = []
    ends: list[int] = []
    for prompt_ids, members in itertools.groupby(examples, key=lambda e: e.prompt_ids):
        tokens += prompt_ids
        groups.append((len(prompt_ids), []))
        for example in members:
            tokens += example.reply_ids
            groups[-1][1].append(len(example.reply_ids))
            ends.append(len(tokens) - 1)
    return torch.tensor(tokens), Packing.of_groups(groups), torch.tensor(ends)


def _shortened(example: Scored, longest: int) -> Scored:
    """The end of an example that is longer than the context: the score is read from the end."""
    reply = example.reply_ids[-longest:]
    room = longest - len(reply)
    return Scored(example.prompt_ids[max(0, len(example.prompt_ids) - room) :], reply)


# --- folders ---------------------------------------------------------------------------------------------------------


def save_reward_model(path: str | Path, model: RewardModel) -> None:
    """Write a folder that `load_reward_model` and transformers' `AutoModelForSequenceClassification` read.

    It appears whole or not at all. transformers reads the score at the last token that is not padding, so padding must
    not be the end token (`ponder.training.supervised.part_padding_from_end`). Raises `BrokenInputError` when the disk
    refuses.
    """
    config = model.decoder.config.to_hf()
    (architecture,) = config["architectures"]
    config |= {
        **end_tokens(model.tokenizer),
        "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": {"0": model.kind},
        "label2id": {model.kind: 0},
        "dtype": str(model.decoder.head_weight.dtype).removeprefix("torch."),
    }
    card = {
        "kind": model.kind,
        "score": model.score,
        "template": model.template,
        "norm": dataclasses.asdict(model.norm),
        "figures": dict(model.figures),
    }
    with replacing_folder(Path(path)) as folder:
        write_json(folder / CONFIG, config)
        weights = dict(model.decoder.named_parameters())
        head = weights.pop("head.weight")
        write_shards(folder, {**rename_to_hf(model.decoder.config, weights), HEAD: head.detach().cpu()})
        model.tokenizer.save(folder)
        write_json(folder / CARD, card)


def load_reward_model(path: str | Path, dtype: torch.dtype = torch.float32) -> RewardModel:
    """Read the folder of a reward model, or of the `train_reward` stage that holds it.

    The decoder's weights are of `dtype`, the head and the scores in float32. Raises `BrokenInputError` when it is none,
    or is damaged.
    """
    card, names, read = open_reward_model(path)
    return card.build(names, read, dtype)


@dataclass(frozen=True)
class RewardCard:
    """A reward model without its weights."""

    config: DecoderConfig
    tokenizer: Tokenizer
    how: Mapping[str, Any]
    """Of the constructor: kind, score and template."""
    norm: Norm
    figures: Mapping[str, float]

    def build(self, names: Iterable[str], read: Callable[[str], Tensor], dtype: torch.dtype) -> RewardModel:
        """The model with the weights that `read` gets by their names in the folder; no more than one is copied at a
        time. Raises `BrokenInputError` for weights that do not fit."""
        decoder = build_decoder(self.config, set(names) - {HEAD}, read, dtype)
        model = RewardModel(decoder, self.tokenizer, **self.how)
        model.decoder.head_weight.data = read(HEAD).to(torch.float32, copy=True)
        model.norm, model.figures = self.norm, self.figures
        return model


def open_reward_model(path: str | Path) -> tuple[RewardCard, set[str], Callable[[str], Tensor]]:
    """What a folder holds besides weights, the names of these, and what reads one. Raises as `load_reward_model`."""
    folder = Path(path)
    if (folder / "model" / CARD).exists():
        folder /= "model"
    if not (folder / CARD).exists():
        raise BrokenInputError(f"{path} is no reward model: it holds no {CARD}; give a `train_reward` stage")
    card = read_object(folder / CARD)
    config = DecoderConfig.from_hf(read_object(folder / CONFIG))
    names, read = open_weights(folder)
    if HEAD not in names:
        raise BrokenInputError(f"the weights in {folder} lack {HEAD}, the head of a reward model")
    try:
        how = {name: card[name] for name in ("kind", "score", "template")}
        norm, figures = Norm(**card["norm"]), dict(card["figures"])
    except (KeyError, TypeError) as error:
        raise BrokenInputError(f"{folder / CARD} lacks or garbles a key: {error}") from error
    return RewardCard(config, Tokenizer.from_folder(folder), how, norm, figures), names, read
