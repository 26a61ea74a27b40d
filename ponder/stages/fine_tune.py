"""`fine_tune`: next-token training on replies, from a model or from nothing; also on-policy distillation.

    repeat:
        take a batch of examples                 or   draw problems, sample the student's own replies
        minimise the replies' cross-entropy      or   minimise KL(student || teacher) at every token of them
    then, where a data set taught, sample replies: nearly all must end by themselves

`FineTuning.run` is that loop, over a `Lesson`: `Reading` is the left column, `OnPolicy` the right one. All that a step
does follows from the weights, the optimizer's state, the seed and the cursor at which the step begins, which is what a
checkpoint holds: a killed run goes on bit for bit as if it had not been.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Protocol

from ponder.cluster.engines import Engines
from ponder.cluster.trainers import open_trainer, trained_decoder
from ponder.curation.sources import read_source
from ponder.errors import RefusedError, UsageError
from ponder.evaluation.heldout import JudgedProblem, engine_sampling, judged_problem
from ponder.mini.world import MiniWorld
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import LoadedModel, save_folder
from ponder.model.load import load_model
from ponder.model.replies import reply_text
from ponder.model.runtime import pick_device
from ponder.model.templates import render
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import MINI_WORLD, FineTuneStage, ModelShape, OnPolicySettings, SamplingSettings, SourceSettings
from ponder.rewards import JudgedCompletion, RolloutJudge
from ponder.rollout.base import Completion, Engine, Request
from ponder.rollout.native import NativeEngine
from ponder.run import StageContext
from ponder.stages._recovery import despite_lost_ranks
from ponder.store import datasets
from ponder.tasks import ProblemStream
from ponder.tasks.base import Problem
from ponder.training.checkpoint import Checkpoints
from ponder.training.distill import distill_step
from ponder.training.packing import Example
from ponder.training.supervised import (
    Batches,
    ExampleBatches,
    check_before_training,
    hold_out,
    mean_loss,
    part_padding_from_end,
    render_rows,
)
from ponder.training.trainer import LocalTrainer, Trainer, TrainerSettings
from ponder.training.update import UpdateStatistics

_TOKENIZER_DOCUMENTS = 6_000
"""Documents of the stage's own text that its tokenizer is trained on."""

_STOP_SAMPLES = 32
"""Replies that the stop-rate gate samples."""

_STOP_BATCH = 8
"""So many prompts of like length are asked at once, up to the length that the longest of them leaves."""


@dataclass(frozen=True)
class Lap:
    """What one step did; `cursor` is where the next one begins, `metrics` what the lesson alone can tell."""

    update: UpdateStatistics
    metrics: dict[str, float]
    cursor: int
    ends_epoch: bool = False


class Lesson(Protocol):
    """What the model learns from."""

    @property
    def total_steps(self) -> int:
        """Known before the first step, so that the learning rate ends where it should."""
        ...

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics worth a person's eye."""
        ...

    def begin(self, trainer: Trainer) -> dict[str, float]:
        """What is worth knowing before the first step."""
        ...

    def step(self, trainer: Trainer, step: int, cursor: int) -> Lap:
        """Step number `step` (from 0), with the data from `cursor` on."""
        ...

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """What is worth knowing at a checkpoint and at the end of an epoch."""
        ...

    def examine(self, open_engine: Callable[[], Engine]) -> dict[str, float]:
        """After the last step: `length/stop_rate`, the share of sampled replies that end by themselves, and what it
        cost; nothing where nobody asks. `open_engine` gives an engine of the trained model."""
        ...


def run_stage(stage: FineTuneStage, context: StageContext) -> None:
    """Train, and leave a Hugging Face folder in the stage's `model/`.

    Raises `UsageError` for data, a context or a teacher that do not fit; `RefusedError` when a check before training or
    the gate after it fails, or when updates are not finite; `InterruptedRunError` when a cluster loses its ranks
    more often than the recipe allows.
    """
    with closing(Engines(context.recipe, context.reporter.warn)) as engines:
        FineTuning(stage, context, engines).run()


class FineTuning:
    """One stage's loop and what it needs."""

    def __init__(self, stage: FineTuneStage, context: StageContext, engines: Engines) -> None:
        self.stage = stage
        self.context = context
        self.engines = engines
        self.checkpoints = Checkpoints(context.state_dir, context.reporter.warn)
        data = _open_data(stage, context)
        self.model = _start(stage, data, context)
        self.lesson = _lesson(stage, context, self.model, data)
        self.step = 0
        self.cursor = 0
        self.skipped = 0

    def run(self) -> None:
        with ExitStack() as stack:
            self.trainer = open_trainer(
                self.model, self._settings(), self.context.recipe, self.context.reporter.warn, stack
            )
            trained = despite_lost_ranks(self.context, self._train, self.trainer.restart)
        save_folder(self.context.model_dir, trained, self.model.tokenizer, self.model.generation)
        self._gate(trained)

    def _settings(self) -> TrainerSettings:
        stage, recipe = self.stage, self.context.recipe
        return TrainerSettings(
            optimizer=stage.optimizer,
            total_steps=self.lesson.total_steps,
            budget=stage.tokens_per_micro_batch,
            lora=stage.lora,
            seed=self.context.seed,
            precision=recipe.precision,
            activation_checkpointing=recipe.activation_checkpointing,
        )

    def _train(self) -> Decoder:
        """Returns the trained model, whole."""
        if not self._resume() and (facts := self.lesson.begin(self.trainer)):
            self.context.metrics.write(0, facts)
        self.context.reporter.begin(self.lesson.total_steps, done=self.step)
        while self.step < self.lesson.total_steps:
            self.context.stop_if_requested(self._checkpoint)
            lr = self.trainer.lr
            lap = self.lesson.step(self.trainer, self.step, self.cursor)
            self.step += 1
            self.cursor = lap.cursor
            self._guard(lap.update)
            self._log(lap, lr)
            self._checkpoint_if_due()
        return trained_decoder(self.model, self.trainer)

    def _guard(self, update: UpdateStatistics) -> None:
        self.skipped = 0 if update.finite else self.skipped + 1
        if self.skipped >= 3:
            raise RefusedError("three updates in a row had a gradient that is not finite: lower optimizer.lr")

    def _log(self, lap: Lap, lr: float) -> None:
        norm = lap.update.grad_norm
        metrics = lap.metrics | {"grad/norm": math.nan if norm is None else norm, "optimizer/lr": lr}
        if lap.ends_epoch or self._checkpoint_is_due():
            metrics |= self.lesson.measure(self.trainer)
        self.context.metrics.write(self.step, metrics)
        self.context.reporter.step(self.step, {name: metrics[name] for name in self.lesson.shown if name in metrics})

    def _gate(self, trained: Decoder) -> None:
        """Refuse a model whose replies do not end. State and model are saved: a second try asks again at once."""
        found = self.lesson.examine(lambda: self.engines.open(dataclasses.replace(self.model, decoder=trained)))
        if not found:
            return
        rate = found["length/stop_rate"]
        if not any("length/stop_rate" in line for line in self.context.run.metrics(self.context.stage_name)):
            self.context.metrics.write(self.step, found)
        self.context.reporter.note(f"{rate:.0%} of the sampled replies end by themselves")
        if rate < self.stage.min_stop_rate:
            raise RefusedError(
                f"only {rate:.0%} of the sampled replies end by themselves, below min_stop_rate "
                f"({self.stage.min_stop_rate:g}): train for more `epochs` or `steps`, or raise optimizer.lr"
            )

    def _checkpoint_is_due(self) -> bool:
        return self.step % self.stage.checkpoint_every == 0 or self.step == self.lesson.total_steps

    def _checkpoint_if_due(self) -> None:
        if self._checkpoint_is_due():
            self._checkpoint()

    def _checkpoint(self) -> None:
        self.checkpoints.save(self.trainer, {"step": self.step, "cursor": self.cursor})

    def _resume(self) -> bool:
        """Go back to the last checkpoint, if there is one; what was logged after it is dropped and done again."""
        state = self.checkpoints.load(self.trainer)
        self.step, self.cursor = 0, 0
        if state is not None:
            self.step, self.cursor = state["step"], state["cursor"]
        last = self.step if state is not None else -1
        self.context.metrics.rewind(last)
        self.context.rollouts.rewind(last)
        return state is not None


# --- learning from text -----------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """Cross-entropy of the replies in batches of text; `held_out` and `prompts` are empty where the text never ends."""

    stage: FineTuneStage
    context: StageContext
    model: LoadedModel
    batches: Batches
    facts: dict[str, float] = field(default_factory=dict)
    held_out: Sequence[Example] = ()
    prompts: Sequence[tuple[int, ...]] = ()
    """What the stop-rate gate asks."""
    shown: tuple[str, ...] = ("loss/train", "loss/heldout", "speed/train_tokens_per_s")

    @property
    def total_steps(self) -> int:
        return self.batches.total_steps

    def begin(self, trainer: Trainer) -> dict[str, float]:
        return self.facts | self.measure(trainer)

    def step(self, trainer: Trainer, step: int, cursor: int) -> Lap:
        started = time.monotonic()
        examples, after = self.batches.take(cursor)
        update = trainer.supervised_update(examples)
        tokens = sum(len(e.prompt_ids) + len(e.reply_ids) for e in examples)
        metrics = {
            "loss/train": update.loss,
            "tokens/trained": tokens,
            "speed/train_tokens_per_s": tokens / (time.monotonic() - started),
        }
        epoch = self.batches.epoch(after)
        if epoch is None:
            return Lap(update, metrics, after)
        metrics["data/epoch"] = epoch
        return Lap(update, metrics, after, ends_epoch=int(epoch) > int(self.batches.epoch(cursor) or 0))

    def measure(self, trainer: Trainer) -> dict[str, float]:
        return {"loss/heldout": mean_loss(trainer, self.held_out)} if self.held_out else {}

    def examine(self, open_engine: Callable[[], Engine]) -> dict[str, float]:
        if not self.prompts or not self.stage.min_stop_rate:
            return {}
        completions = list(self._replies(open_engine()))
        return {
            "length/stop_rate": fmean(c.finish_reason == "stop" for c in completions),
            "tokens/sampled": sum(len(c.ids) for c in completions),
        }

    def _replies(self, engine: Engine) -> Iterator[Completion]:
        """As models are evaluated [R1 D.1], each as long as the context allows."""
        samples = max(1, _STOP_SAMPLES // len(self.prompts))
        ordered = sorted(self.prompts, key=len)
        for start in range(0, len(ordered), _STOP_BATCH):
            prompts = ordered[start : start + _STOP_BATCH]
            settings = SamplingSettings(temperature=0.6, top_p=0.95, max_tokens=self.stage.context - len(prompts[-1]))
            requests = [Request(ids, f"{self.context.stage_name}/stop rate/{ids}", samples) for ids in prompts]
            sampling = engine_sampling(settings, self.model.tokenizer)
            for group in engine.generate(requests, sampling, self.context.seed):
                yield from group


class DocumentBatches:
    """The mini world's documents, one behind the other; those longer than the context are cut, as text of a web page
    would be."""

    def __init__(self, world: MiniWorld, tokenizer: Tokenizer, stage: FineTuneStage) -> None:
        assert stage.steps is not None  # the recipe's schema: the world never ends
        self.world = world
        self.tokenizer = tokenizer
        self.context = stage.context
        self.tokens_per_step = stage.tokens_per_step
        self.total_steps = stage.steps

    def take(self, cursor: int) -> tuple[list[Example], int]:
        examples: list[Example] = []
        tokens = 0
        while tokens < self.tokens_per_step:
            example = self._example(cursor + len(examples))
            examples.append(example)
            tokens += len(example.prompt_ids) + len(example.reply_ids)
        return examples, cursor + len(examples)

    def epoch(self, cursor: int) -> None:
        return None

    def _example(self, number: int) -> Example:
        document = self.world.document(number)
        prompt = tuple(self.tokenizer.encode(document.prompt))[: self.context - 1]
        return Example(prompt, tuple(self.tokenizer.encode(document.reply))[: self.context - len(prompt)])


def _reading(stage: FineTuneStage, context: StageContext, model: LoadedModel, data: DataSet) -> Reading:
    """A data set, rendered, checked, and parted into what is trained on and what is held out."""
    rendered = render_rows(data.rows, stage.template, model.tokenizer, stage.context)
    padding = part_padding_from_end(model)
    if padding is not None:
        context.reporter.note(f"padding was the end token; the new model pads with {padding} instead")
    check_before_training(rendered, stage.template, model.tokenizer, model.generation)
    train, held_out = hold_out(rendered.examples)
    batches = ExampleBatches(train, stage.tokens_per_step, context.seed, epochs=stage.epochs, steps=stage.steps)
    reasons = rendered.left_out + Counter({"holding no whole example": data.unusable})
    left_out = "".join(f"; {count} left out for {why}" for why, count in reasons.most_common())
    context.reporter.note(f"{len(train)} examples to train on, {len(held_out)} held out{left_out}")
    facts = {
        "data/examples": float(len(train)),
        "data/heldout": float(len(held_out)),
        "data/left_out": float(reasons.total()),
    }
    prompts = sorted({e.prompt_ids for e in rendered.examples})
    asked = random.Random(f"stop-rate prompts of {context.seed}").sample(prompts, min(_STOP_SAMPLES, len(prompts)))
    return Reading(stage, context, model, batches, facts, held_out, asked)


# --- learning from a teacher ------------------------------------------------------------------------------------------


class OnPolicy:
    """KL(student || teacher) at every token of replies that the student samples [MiniLLM, GKD]."""

    shown: tuple[str, ...] = ("distill/reverse_kl", "accuracy/pass@1", "length/mean")

    def __init__(
        self, stage: FineTuneStage, settings: OnPolicySettings, context: StageContext, student: LoadedModel
    ) -> None:
        assert stage.steps is not None  # the recipe's schema: problems never end
        self.stage = stage
        self.settings = settings
        self.context = context
        self.student = student
        self.total_steps = stage.steps
        self.teacher, self.vocab_size = _teacher(settings.teacher, context, student.tokenizer)
        self.engine = NativeEngine(student.decoder, student.tokenizer.decode)
        self.problems = ProblemStream(settings.tasks, "train", context.seed)

    def begin(self, trainer: Trainer) -> dict[str, float]:
        return {}

    def step(self, trainer: Trainer, step: int, cursor: int) -> Lap:
        assert isinstance(trainer, LocalTrainer)  # `_lesson` sees to it
        started = time.monotonic()
        problems, after = self.problems.take(cursor, self.settings.prompts_per_step)
        examples, judged = self._sample(problems, step)
        sampled = time.monotonic()
        update = distill_step(
            self.student.decoder,
            self.teacher,
            trainer.optimizer,
            examples,
            self.vocab_size,
            budget=self.stage.tokens_per_micro_batch,
        )
        updated = time.monotonic()
        rows = [row for one in judged for row in one.rollouts]
        self.context.rollouts.add(step + 1, [dataclasses.replace(row, split="train") for row in rows])
        tokens = sum(row.length for row in rows)
        metrics = {
            "distill/reverse_kl": update.kl,
            "accuracy/pass@1": fmean(row.correct for row in rows),
            "length/mean": tokens / len(rows),
            "length/truncated_share": fmean(row.finish_reason == "length" for row in rows),
            "tokens/sampled": tokens,
            "tokens/trained": tokens,
            "speed/rollout_tokens_per_s": tokens / (sampled - started),
            "speed/train_tokens_per_s": tokens / (updated - sampled),
        }
        return Lap(update, metrics, after)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        return {}

    def examine(self, open_engine: Callable[[], Engine]) -> dict[str, float]:
        return {}

    def _sample(self, problems: Sequence[Problem], step: int) -> tuple[list[Example], list[JudgedProblem]]:
        """The student's replies, as examples and as judged rollouts."""
        tokenizer = self.student.tokenizer
        prompts = [render(self.stage.template, problem.prompt, tokenizer) for problem in problems]
        ids = [tuple(tokenizer.encode_prompt(prompt)) for prompt in prompts]
        room = self.teacher.config.max_positions - max(len(prompt_ids) for prompt_ids in ids)
        if room < self.settings.sampling.max_tokens:
            raise UsageError(f"on_policy.sampling.max_tokens must be at most {room}, for which the teacher has room")
        groups = self._complete(problems, prompts, ids, step)
        examples = [
            Example(prompt_ids, tuple(one.completion.ids))
            for prompt_ids, group in zip(ids, groups, strict=True)
            for one in group
        ]
        return examples, [judged_problem(*parts) for parts in zip(problems, prompts, groups, strict=True)]

    def _complete(
        self, problems: Sequence[Problem], prompts: Sequence[str], ids: Sequence[tuple[int, ...]], step: int
    ) -> list[list[JudgedCompletion]]:
        samples = self.settings.samples
        requests = [
            Request(prompt_ids, f"{self.context.stage_name}/{step}/{problem.id}", samples)
            for prompt_ids, problem in zip(ids, problems, strict=True)
        ]
        done = itertools.count(1)
        sampling = engine_sampling(self.settings.sampling, self.student.tokenizer)

        def on_progress(count: int) -> None:
            for _ in range(count):
                self.context.reporter.within(next(done), len(requests) * samples)

        judge = RolloutJudge(self.context.judges, self.student.tokenizer, problems, prompts, on_progress)
        return judge.judged(self.engine.generate(requests, sampling, self.context.seed, judge.on_finished))


def _teacher(reference: str, context: StageContext, tokenizer: Tokenizer) -> tuple[Decoder, int]:
    """The teacher, frozen, and the number of ids that its tokens take up.

    Raises `UsageError` when its tokenizer is not the student's: their probabilities would be of different things.
    """
    teacher = load_model(context.model_source(reference)).to(pick_device(context.recipe.device))
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    if teacher.tokenizer.backend.get_vocab(with_added_tokens=True) != vocabulary:
        raise UsageError(f"on_policy.teacher {reference!r} must have the student's tokenizer, token for token")
    return teacher.decoder.requires_grad_(False), max(vocabulary.values()) + 1


# --- what a stage starts from -----------------------------------------------------------------------------------------


@dataclass
class DataSet:
    """Examples, and how many rows of the files that were read hold none."""

    rows: list[datasets.Example] = field(default_factory=list)
    unusable: int = 0


_Data = MiniWorld | DataSet | None


def _open_data(stage: FineTuneStage, context: StageContext) -> _Data:
    """The stage's text; None where the student writes it itself."""
    if stage.on_policy is not None:
        return None
    if MINI_WORLD in stage.data:
        return _open_world(stage, context.seed)
    if stage.data_options:
        raise UsageError("data_options are for the data `mini-world` alone")
    data = DataSet()
    for reference in stage.data:
        _read(reference, data, context)
    return data


def _open_world(stage: FineTuneStage, seed: int) -> MiniWorld:
    try:
        return MiniWorld(**{"seed": seed, **stage.data_options})
    except TypeError as error:
        raise UsageError(f"data_options do not fit `mini-world`: {error}") from error


def _read(reference: str, data: DataSet, context: StageContext) -> None:
    """Add the examples of a `sample` stage, a folder that one has written, or files from elsewhere."""
    path = Path(context.data_source(reference)).expanduser()
    if (path / "card.json").is_file():
        data.rows += datasets.read_rows(path, datasets.Example)
        return
    if not path.exists():
        raise UsageError(
            f"data: {reference!r} is neither `mini-world` nor a `sample` stage, and no folder or JSONL or Parquet file"
        )
    found = read_source("file", SourceSettings(path=str(path)), context.seed)
    data.rows += [candidate.example for candidate in found.candidates if candidate.finished]
    data.unusable += found.broken + sum(not candidate.finished for candidate in found.candidates)


def _start(stage: FineTuneStage, data: _Data, context: StageContext) -> LoadedModel:
    if stage.model is not None:
        return _with_room(load_model(context.model_source(stage.model)), stage.max_positions)
    assert stage.shape is not None
    if stage.shape.tokenizer is not None:
        tokenizer = load_model(context.model_source(stage.shape.tokenizer)).tokenizer
    elif data is None:
        raise UsageError("shape.tokenizer must name the teacher: distillation on policy needs its tokens")
    else:
        tokenizer = Tokenizer.train(_own_text(data), stage.shape.vocab_size)
    config = _config(stage.shape, tokenizer)
    decoder = Decoder(config)
    decoder.initialise(context.seed if stage.shape.seed is None else stage.shape.seed)
    return LoadedModel(decoder, tokenizer, config, generation={})


def _with_room(model: LoadedModel, positions: int | None) -> LoadedModel:
    """The model with another longest sequence, as DeepSeek gave the bases that it distilled into."""
    if positions is None:
        return model
    if isinstance(model.decoder, FallbackDecoder):
        raise UsageError("max_positions is for Llama, Qwen2 and Qwen3 models alone: leave it out")
    model.decoder.set_max_positions(positions)
    return dataclasses.replace(model, config=model.decoder.config)


def _own_text(data: MiniWorld | DataSet) -> Iterable[str]:
    if isinstance(data, MiniWorld):
        documents = (data.document(i) for i in range(_TOKENIZER_DOCUMENTS))
        return (d.prompt + d.reply for d in documents)
    return (f"{row.prompt}\n{reply_text(row.thinking, row.answer)}" for row in data.rows[:_TOKENIZER_DOCUMENTS])


def _config(shape: ModelShape, tokenizer: Tokenizer) -> DecoderConfig:
    fields = shape.model_dump(exclude={"seed", "tokenizer"})
    fields["vocab_size"] = tokenizer.vocab_size
    fields["qk_norm"] = shape.family == "qwen3"
    return DecoderConfig(**fields, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id)


def _lesson(stage: FineTuneStage, context: StageContext, model: LoadedModel, data: _Data) -> Lesson:
    if stage.on_policy is not None:
        return OnPolicy(stage, stage.on_policy, context, model)
    if stage.context > model.config.max_positions:
        raise UsageError(
            f"context ({stage.context}) must not exceed the model's {model.config.max_positions} positions"
        )
    if isinstance(data, MiniWorld):
        return Reading(stage, context, model, DocumentBatches(data, model.tokenizer, stage))
    assert data is not None
    return _reading(stage, context, model, data)
