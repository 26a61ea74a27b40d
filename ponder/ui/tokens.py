"""A rollout's tokens as pieces of its text, each with what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from ponder.errors import PonderError
from ponder.model.embedded import FOLDERS
from ponder.model.tokenizer import StreamDecoder, Tokenizer
from ponder.recipe import ReinforceStage, SampleStage
from ponder.run import RunFolder
from ponder.store.rollouts import RolloutRow


@dataclass(frozen=True)
class Pieces:
    """`texts` joined are the completion, but for special tokens. Tokens that only together make a character are one
    piece, and what is said of them is said of all of them. Without pieces, `missing` says why.

    The rest is one a piece, or empty where it is not known; None stands for what is not finite.
    """

    texts: tuple[str, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    """Of the policy that sampled it, in nats."""
    entropies: tuple[float | None, ...] = ()
    """Of what it was drawn from, in nats."""
    ratios: tuple[float | None, ...] = ()
    """Probability under the policy that learnt from it / under the one that sampled it."""
    versions: tuple[int, ...] = ()
    """Of the policy that sampled it; empty where one version sampled all."""
    missing: str | None = None


def token_pieces(run: RunFolder, row: RolloutRow) -> Pieces:
    """The tokens of a rollout that was read with them."""
    count = len(row.token_ids)
    if not count or len(row.logprobs) != count:
        return Pieces(missing="The tokens of this rollout were not stored, or were dropped to keep the file small.")
    folder = _tokenizer_folder(run, row)
    if folder is None:
        return Pieces(missing="The tokenizer of the model that wrote this is not on this machine.")
    tokenizer = _tokenizer(folder, (folder / "tokenizer.json").stat().st_mtime_ns)
    texts, spans = _spelled(tokenizer, row.token_ids)
    if not "".join(texts).startswith(row.text):
        return Pieces(missing="The tokenizer has changed since this was written: its tokens spell another text.")
    versions = _of_each_token(row.versions, count)
    return Pieces(
        tuple(texts),
        _of_each_piece(row.logprobs, spans, math.fsum),
        _of_each_piece(row.entropies if len(row.entropies) == count else (), spans, math.fsum),
        _of_each_piece(row.ratios if len(row.ratios) == count else (), spans, math.prod),
        tuple(versions[span.start] for span in spans) if versions else (),
    )


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], list[range]]:
    """The pieces' texts, and which tokens each is made of."""
    decoder = StreamDecoder(tokenizer, skip_special=False)
    texts: list[str] = []
    spans: list[range] = []
    begin = 0
    for end, token in enumerate(ids, start=1):
        text = decoder.push([token])
        if text:
            texts.append(text)
            spans.append(range(begin, end))
            begin = end
    rest = decoder.finish()
    if rest:
        texts.append(rest)
        spans.append(range(begin, len(ids)))
    return texts, spans


def _of_each_piece(
    values: Sequence[float], spans: Sequence[range], join: Callable[[Sequence[float]], float]
) -> tuple[float | None, ...]:
    """One value a piece, from one a token; nothing from nothing."""
    joined = [join(values[span.start : span.stop]) for span in spans] if values else []
    return tuple(value if math.isfinite(value) else None for value in joined)


def _of_each_token(versions: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The stretches written out; nothing where they are not the stretches of so many tokens."""
    starts = [start for start, _ in versions]
    if len(versions) < 2 or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= count:
        return []
    lengths = [end - start for start, end in pairwise([*starts, count])]
    return [version for length, (_, version) in zip(lengths, versions, strict=True) for _ in range(length)]


def _tokenizer_folder(run: RunFolder, row: RolloutRow) -> Path | None:
    """Where the tokenizer of a rollout's model lies, if on this machine: nothing is downloaded for a look."""
    for reference in filter(None, (row.model, row.stage, *_started_from(run, row.stage))):
        for folder in (run.stage_folder(reference) / "model", FOLDERS.get(reference), Path(reference)):
            if folder is not None and (folder / "tokenizer.json").is_file():
                return folder
    return None


def _started_from(run: RunFolder, stage: str) -> tuple[str, ...]:
    """The model that a stage samples from: while it runs, it has left none of its own."""
    try:
        settings = run.recipe().stages.get(stage)
    except PonderError:
        return ()
    return (settings.model,) if isinstance(settings, (ReinforceStage, SampleStage)) and settings.model else ()


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, changed: int) -> Tokenizer:
    return Tokenizer.from_folder(folder)
