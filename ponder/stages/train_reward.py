"""`train_reward`: a scalar head on a base model, trained on what people, or a judge, prefer or call safe.

    read pairs or labelled replies       (unjudged pairs are put to the judge)
    hold some of the prompts out
    repeat: minimise the loss on the next rows
    measure on what was held out         (accuracy, calibration, length bias)

`RewardTraining._train` is the last two lines. All that a step does follows from the weights, the optimizer's state, the
seed and the step's number, which is what a checkpoint holds: a killed run goes on bit for bit as if it had not been.

Sources: [R1] 3.1, B.2.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from ponder.cluster.trainers import open_reward_trainer
from ponder.curation.endpoint import Endpoint
from ponder.curation.judge import judge_pairs
from ponder.curation.preference_data import (
    Item,
    UnjudgedPair,
    as_judged,
    as_labelled,
    draw_rows,
    generate_items,
    read_items,
    split_by_prompt,
)
from ponder.errors import RefusedError, UsageError
from ponder.evaluation.calibration import HeldOutPair, HeldOutReply, pair_figures, reply_figures
from ponder.evaluation.metrics import Estimate
from ponder.model.load import load_model
from ponder.model.parser import split_thinking
from ponder.model.reward_model import Norm, RewardModel, Scored, save_reward_model
from ponder.model.templates import template_hash
from ponder.recipe import MINI_WORLD, TrainRewardStage
from ponder.run import StageContext
from ponder.stages._recovery import despite_lost_ranks
from ponder.store.datasets import LabelledReply, PreferencePair, write_rows
from ponder.store.files import atomic_write, atomic_write_json, make_folder, read_json
from ponder.training.checkpoint import Checkpoints
from ponder.training.reward_update import RewardExample
from ponder.training.supervised import part_padding_from_end
from ponder.training.trainer import TrainerSettings

_SMALLEST_DEVIATION = 1e-6
"""Of held-out scores, in their own unit: below it they are all the same but for rounding."""

_JUDGED_AT_ONCE = 32
"""Pairs between states of the judging from which a resume is possible."""

_MAX_SKIPPED = 3

Row = PreferencePair | LabelledReply
Figures = Mapping[str, Estimate | float]


@dataclass(frozen=True)
class _Case:
    """A row, and its token ids."""

    row: Row
    example: RewardExample


def run_stage(stage: TrainRewardStage, context: StageContext) -> None:
    """Train, measure, and leave the reward model in the stage's `model/`.

    Raises `UsageError` for data or settings that do not fit, `RefusedError` for data that cannot teach or measure, or
    updates that are not finite; `InterruptedRunError` when a cluster loses its ranks more often than the recipe allows.
    """
    RewardTraining(stage, context).run()


class RewardTraining:
    """One stage's loop and what it needs."""

    def __init__(self, stage: TrainRewardStage, context: StageContext) -> None:
        self.stage = stage
        self.context = context
        self.checkpoints = Checkpoints(context.state_dir, context.reporter.warn)
        base = load_model(context.model_source(stage.model))
        part_padding_from_end(base)
        self.model = RewardModel.on(base, context.seed, kind=stage.kind, score=stage.score, template=stage.template)
        config = self.model.decoder.config
        if stage.frozen_layers > config.num_layers:
            raise UsageError(
                f"frozen_layers ({stage.frozen_layers}) must not exceed the model's {config.num_layers} layers"
            )
        if stage.max_tokens > config.max_positions:
            raise UsageError(
                f"max_tokens ({stage.max_tokens}) must not exceed the model's {config.max_positions} positions"
            )
        self.left_out: Counter[str] = Counter()
        self.training, self.held_out = self._split(read_data(stage, context, self.left_out))
        self.total = max(1, round(stage.epochs * len(self.training)))
        self.steps = math.ceil(self.total / stage.rows_per_step)
        self.step = 0
        self.skipped = 0

    def run(self) -> None:
        context = self.context
        with ExitStack() as stack:
            self.trainer = open_reward_trainer(
                self.model, self._settings(), context.recipe, context.reporter.warn, stack
            )
            weights = despite_lost_ranks(context, self._train, self.trainer.restart)
            self.model.decoder.load_state_dict(dict(weights))
        save_reward_model(context.model_dir, self.model)

    def _settings(self) -> TrainerSettings:
        stage, recipe = self.stage, self.context.recipe
        return TrainerSettings(
            optimizer=stage.optimizer,
            total_steps=self.steps,
            budget=stage.tokens_per_micro_batch,
            precision=recipe.precision,
            activation_checkpointing=recipe.activation_checkpointing,
            frozen_layers=stage.frozen_layers,
        )

    def _train(self) -> Mapping[str, Tensor]:
        """Returns the trained decoder's weights, whole."""
        self._resume()
        self.context.reporter.begin(self.steps, done=self.step)
        if not self.step:
            self._describe_data()
        while self.step < self.steps:
            self.context.stop_if_requested(self._checkpoint)
            self._update()
            if self.step == self.steps:
                self._measure()
            if self.step == self.steps or self.step % self.stage.checkpoint_every == 0:
                self._checkpoint()
        return self.trainer.weights()

    # --- what is trained on ------------------------------------------------------------------------------------------

    def _split(self, rows: Sequence[Row]) -> tuple[list[_Case], list[_Case]]:
        """(to train on, held out). Raises `RefusedError` when one of them is of no use."""
        cases = [_Case(row, example) for row in rows if (example := self._example(row)) is not None]
        training, held_out = split_by_prompt(cases, lambda c: c.row.prompt, self.stage.heldout_share, self.context.seed)
        if not training or not held_out:
            raise RefusedError(
                f"the {len(cases)} rows that can be used ask fewer than two different things, so none can be held out: "
                f"give more `data` or raise max_tokens{_reasons(self.left_out)}"
            )
        if self.stage.kind == "pointwise":
            for part in (training, held_out):
                if len({case.example.label for case in part}) == 1:
                    where = "to train on" if part is training else "held out"
                    raise RefusedError(f"the {len(part)} replies {where} all have one label: give `data` with both")
        return training, held_out

    def _example(self, row: Row) -> RewardExample | None:
        """The token ids of a row; None, and counted, where an answer is missing or it is too long."""
        replies = (row.chosen, row.rejected) if isinstance(row, PreferencePair) else (row.reply,)
        scored = [self.model.example(row.prompt, reply) for reply in replies]
        whole = tuple(s for s in scored if s is not None)
        if len(whole) < len(scored):
            self.left_out["no whole answer"] += 1
        elif max(s.num_tokens for s in whole) > self.stage.max_tokens:
            self.left_out["longer than max_tokens"] += 1
        else:
            return RewardExample(whole, row.safe if isinstance(row, LabelledReply) else True)
        return None

    def _batch(self) -> list[RewardExample]:
        """The rows of the next step; every epoch has an order of its own, which the seed decides."""
        start = self.step * self.stage.rows_per_step
        places = [
            divmod(p, len(self.training)) for p in range(start, min(start + self.stage.rows_per_step, self.total))
        ]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        return [self.training[orders[epoch][place]].example for epoch, place in places]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.training)))
        random.Random(f"epoch {epoch} of {self.context.seed}").shuffle(order)
        return order

    def _update(self) -> None:
        started, lr = time.monotonic(), self.trainer.lr
        batch = self._batch()
        result = self.trainer.reward_update(batch)
        self.step += 1
        self.skipped = 0 if result.finite else self.skipped + 1
        if self.skipped >= _MAX_SKIPPED:
            raise RefusedError("three updates in a row had a gradient that is not finite: lower optimizer.lr")
        tokens = sum(example.num_tokens for example in batch)
        metrics = {
            "loss/train": result.loss,
            "accuracy/train": result.accuracy,
            "grad/norm": math.nan if result.grad_norm is None else result.grad_norm,
            "optimizer/lr": lr,
            "tokens/trained": tokens,
            "speed/train_tokens_per_s": tokens / (time.monotonic() - started),
        }
        self.context.metrics.write(self.step, metrics)
        self.context.reporter.step(self.step, {name: metrics[name] for name in ("loss/train", "accuracy/train")})

    def _describe_data(self) -> None:
        counts = {"data/examples": len(self.training), "data/heldout": len(self.held_out)}
        self.context.metrics.write(0, counts | {"data/left_out": self.left_out.total()})
        text = f"{len(self.training)} rows to train on, {len(self.held_out)} held out{_reasons(self.left_out)}"
        if self.stage.kind == "pairwise":
            pairs = [case.example.replies for case in (*self.training, *self.held_out)]
            chosen, rejected = (fmean(_length(pair[side]) for pair in pairs) for side in (0, 1))
            text += f"; what is scored has {chosen:.0f} tokens where chosen, {rejected:.0f} where rejected"
        self.context.reporter.note(text)

    # --- what was held out -------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Score what was held out; norm and figures go into the model, metrics and evaluations."""
        replies = [reply for case in self.held_out for reply in case.example.replies]
        raw = self.trainer.raw_scores(replies)
        self.model.norm = Norm.of(raw)
        if not self.model.norm.deviation > _SMALLEST_DEVIATION:
            raise RefusedError("the model scores all that was held out alike: raise optimizer.lr or `epochs`")
        scores = iter(raw)
        if self.stage.kind == "pairwise":
            pairs = [_held_out_pair(case, next(scores), next(scores)) for case in self.held_out]
            figures = pair_figures(pairs)
            samples = self._save_samples(pairs)
        else:
            singles = [_held_out_reply(case, next(scores)) for case in self.held_out]
            figures = reply_figures(singles)
            samples = self._save_samples(singles)
        self.model.figures = {name: _value(f) for name, f in figures.items() if math.isfinite(_value(f))}
        accuracy = figures["accuracy/mean"]
        assert isinstance(accuracy, Estimate)
        values = {f"heldout/{name}": _value(figure) for name, figure in figures.items()}
        bounds = {"heldout/accuracy/mean_low": accuracy.low, "heldout/accuracy/mean_high": accuracy.high}
        self.context.metrics.write(self.step, values | bounds)
        self.context.evaluations.add(self._evaluation_rows(figures, samples))
        self.context.reporter.note(f"{self._benchmark}: {_figures_text(figures)}")

    @property
    def _benchmark(self) -> str:
        return "held-out pairs" if self.stage.kind == "pairwise" else "held-out replies"

    def _evaluation_rows(self, figures: Figures, samples: Path) -> Iterator[dict[str, Any]]:
        for metric, figure in figures.items():
            if math.isfinite(_value(figure)):
                yield {
                    "model": self.context.stage_name,
                    "benchmark": self._benchmark,
                    "metric": metric,
                    "value": _value(figure),
                    "interval": [figure.low, figure.high] if isinstance(figure, Estimate) else None,
                    "k": 1,
                    "problems": len({case.row.prompt for case in self.held_out}),
                    "rows": len(self.held_out),
                    "template": self.stage.template,
                    "template_hash": template_hash(self.stage.template, self.model.tokenizer),
                    "seed": self.context.seed,
                    "samples": samples.relative_to(self.context.run.path).as_posix(),
                }

    def _save_samples(self, scored: Sequence[HeldOutPair | HeldOutReply]) -> Path:
        """Every held-out row with its texts, scores and lengths: enough to compute the figures again."""
        make_folder(self.context.folder / "samples")
        path = self.context.folder / "samples" / "held-out.jsonl"
        lines = [
            {**dataclasses.asdict(case.row), **dataclasses.asdict(measured)}
            for case, measured in zip(self.held_out, scored, strict=True)
        ]
        atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return path

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "norm": dataclasses.asdict(self.model.norm),
            "figures": dict(self.model.figures),
        }
        self.checkpoints.save(self.trainer, state)

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one; what was logged after it is dropped and done again."""
        state = self.checkpoints.load(self.trainer)
        self.step, self.skipped = 0, 0
        if state is not None:
            self.step, self.skipped = state["step"], state["skipped"]
            self.model.norm, self.model.figures = Norm(**state["norm"]), state["figures"]
        self.context.metrics.rewind(self.step if state is not None else -1)
        if self.step < self.steps:
            self.context.evaluations.rewind(-1)  # they are of the last step


# --- reading ----------------------------------------------------------------------------------------------------------


def read_data(stage: TrainRewardStage, context: StageContext, left_out: Counter[str]) -> list[Row]:
    """The stage's rows, of its kind; what cannot be used is counted in `left_out` by reason.

    Raises `UsageError` for data of another kind, or unjudged pairs without a judge, and as the endpoint does.
    """
    items: list[Item] = []
    for reference in stage.data:
        if reference == MINI_WORLD:
            if not stage.rows:
                raise UsageError(f"rows must say how many rows `{MINI_WORLD}` is to make")
            items += generate_items(stage.kind, context.seed, stage.rows, stage.data_options)
        else:
            setting = f"stages.{context.stage_name}.data"
            items += read_items(setting, Path(context.data_source(reference)), left_out)
    items = draw_rows(items, stage.rows, context.seed)
    rows: list[Row] = [item for item in items if not isinstance(item, UnjudgedPair)]
    unjudged = [item for item in items if isinstance(item, UnjudgedPair)]
    if unjudged:
        rows += _judge(unjudged, stage, context, left_out)
    if stage.kind == "pointwise":
        return [*as_labelled(rows)]
    if not all(isinstance(row, PreferencePair) for row in rows):
        raise UsageError("data: labelled replies are no pairs; set `kind` to pointwise")
    return rows


def _judge(
    pairs: Sequence[UnjudgedPair], stage: TrainRewardStage, context: StageContext, left_out: Counter[str]
) -> list[PreferencePair]:
    """The pairs on which the judge is clear enough, which are also left in the stage's `data/`."""
    if stage.judge is None:
        raise UsageError(f"{len(pairs)} pairs in `data` are not judged: name a `judge`")
    judged: list[PreferencePair] = []
    unclear: Counter[str] = Counter()
    for pair, grade in zip(pairs, _grades(pairs, stage, context), strict=True):
        if grade is None:
            unclear["the judge gave no verdict"] += 1
        elif abs(grade) <= stage.judge_margin:
            unclear["the judge sees too little difference"] += 1
        else:
            judged.append(as_judged(pair, grade))
    card = {"judge": stage.judge.model, "votes a pair": stage.judge_votes, "asked": len(pairs), "kept": len(judged)}
    write_rows(context.data_dir, judged, PreferencePair, {**card, "dropped": dict(unclear)})
    left_out.update(unclear)
    return judged


def _grades(pairs: Sequence[UnjudgedPair], stage: TrainRewardStage, context: StageContext) -> list[float | None]:
    """The judge's averaged grade of each pair, in favour of `a`; kept as they come, so that none is asked for twice."""
    assert stage.judge is not None
    path = context.state_dir / "judgements.json"
    grades: list[float | None] = read_json(path) if path.exists() else []
    if len(grades) < len(pairs):
        context.reporter.begin(len(pairs), done=len(grades))
        client = Endpoint(stage.judge)
    while len(grades) < len(pairs):
        asked = [(p.prompt, *_judged_texts(p, stage)) for p in pairs[len(grades) : len(grades) + _JUDGED_AT_ONCE]]
        grades += judge_pairs(client, asked, stage.judge_votes)
        atomic_write_json(path, grades)
        context.reporter.step(len(grades))
    return grades


def _judged_texts(pair: UnjudgedPair, stage: TrainRewardStage) -> tuple[str, str]:
    """What is to be scored is what the judge sees [R1 3.1]: no thinking where only the answer counts."""
    if stage.score == "reply":
        return pair.a, pair.b
    a, b = (split_thinking(text).answer or "" for text in (pair.a, pair.b))
    return a, b


# --- small things -----------------------------------------------------------------------------------------------------


def _held_out_pair(case: _Case, chosen: float, rejected: float) -> HeldOutPair:
    return HeldOutPair(case.row.prompt, chosen, rejected, *(_length(reply) for reply in case.example.replies))


def _held_out_reply(case: _Case, score: float) -> HeldOutReply:
    return HeldOutReply(case.row.prompt, score, case.example.label, _length(case.example.replies[0]))


def _length(reply: Scored) -> int:
    """Tokens of what is scored, without the end token."""
    return len(reply.reply_ids) - 1


def _reasons(left_out: Counter[str]) -> str:
    listed = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return f" (left out: {listed})" if listed else ""


def _value(figure: Estimate | float) -> float:
    return figure.value if isinstance(figure, Estimate) else figure


def _figures_text(figures: Figures) -> str:
    """All figures in one line; accuracies with their intervals."""
    return ", ".join(
        f"{name} {f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" if isinstance(f, Estimate) else f"{name} {f:.3f}"
        for name, f in figures.items()
    )
