"""`fine_tune`: supervised training on replies, from a model or from nothing (that is how the mini base is made)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from ponder.errors import RefusedError, UsageError
from ponder.mini.world import MiniWorld
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.folder import LoadedModel, save_folder
from ponder.model.load import load_model
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import FineTuneStage, ModelShape
from ponder.run import StageContext
from ponder.training.checkpoint import load_state, save_state
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example
from ponder.training.update import supervised_step

_TOKENIZER_DOCUMENTS = 6_000
"""Documents of the stage's own text that its tokenizer is trained on."""


def run_stage(stage: FineTuneStage, context: StageContext) -> None:
    """Train, and leave a Hugging Face folder in the stage's `model/`.

    Raises `UsageError` for data or a context that do not fit, `RefusedError` when updates are not finite.
    """
    world = _open_world(stage, context.seed)
    model = _start(stage, world, context)
    if stage.context > model.config.max_positions:
        raise UsageError(
            f"context ({stage.context}) must not exceed the model's {model.config.max_positions} positions"
        )
    optimizer = Optimizer(model.decoder, stage.optimizer, stage.steps)
    step, cursor = 0, 0
    if (state := load_state(context.state_dir)) is not None:
        model.decoder.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        step, cursor = state["step"], state["cursor"]
    context.metrics.rewind(step)
    context.reporter.begin(stage.steps, done=step)
    skipped = 0
    while step < stage.steps:
        started = time.monotonic()
        examples = []
        tokens = 0
        for example in _examples(world, model.tokenizer, cursor, stage.context):
            examples.append(example)
            tokens += len(example.prompt_ids) + len(example.reply_ids)
            if tokens >= stage.tokens_per_step:
                break
        cursor += len(examples)
        lr = optimizer.lr
        result = supervised_step(model.decoder, optimizer, examples, budget=4096)
        step += 1
        skipped = skipped + 1 if result.grad_norm is None else 0
        if skipped >= 3:
            raise RefusedError("three updates in a row had a gradient that is not finite: lower optimizer.lr")
        metrics = {
            "loss/train": result.loss,
            "grad/norm": math.nan if result.grad_norm is None else result.grad_norm,
            "optimizer/lr": lr,
            "speed/train_tokens_per_s": tokens / (time.monotonic() - started),
        }
        context.metrics.write(step, metrics)
        context.reporter.step(step, {k: metrics[k] for k in ("loss/train", "speed/train_tokens_per_s")})
        if step % stage.checkpoint_every == 0 or step == stage.steps:
            save_state(
                context.state_dir,
                {
                    "weights": model.decoder.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "cursor": cursor,
                },
            )
    save_folder(context.model_dir, model.decoder, model.tokenizer, model.generation)


def _open_world(stage: FineTuneStage, seed: int) -> MiniWorld:
    if stage.data != ("mini-world",):
        raise UsageError(f"data {', '.join(stage.data)!r} cannot be read yet: `mini-world` is the one source")
    try:
        return MiniWorld(**{"seed": seed, **stage.data_options})
    except TypeError as error:
        raise UsageError(f"data_options do not fit `mini-world`: {error}") from error


def _start(stage: FineTuneStage, world: MiniWorld, context: StageContext) -> LoadedModel:
    if stage.model is not None:
        return load_model(context.model_source(stage.model))
    assert stage.shape is not None
    if stage.shape.tokenizer is None:
        texts = (d.prompt + d.reply for d in (world.document(i) for i in range(_TOKENIZER_DOCUMENTS)))
        tokenizer = Tokenizer.train(texts, stage.shape.vocab_size)
    else:
        tokenizer = load_model(context.model_source(stage.shape.tokenizer)).tokenizer
    config = _config(stage.shape, tokenizer)
    decoder = Decoder(config)
    decoder.initialise(context.seed if stage.shape.seed is None else stage.shape.seed)
    return LoadedModel(decoder, tokenizer, config, generation={})


def _config(shape: ModelShape, tokenizer: Tokenizer) -> DecoderConfig:
    fields = shape.model_dump(exclude={"seed", "tokenizer"})
    fields["vocab_size"] = tokenizer.vocab_size
    fields["qk_norm"] = shape.family == "qwen3"
    return DecoderConfig(**fields, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id)


def _examples(world: MiniWorld, tokenizer: Tokenizer, cursor: int, context: int) -> Iterator[Example]:
    """Documents from the cursor on; those longer than the context are cut, as text of a web page would be."""
    while True:
        document = world.document(cursor)
        prompt = tuple(tokenizer.encode(document.prompt))[: context - 1]
        reply = tuple(tokenizer.encode(document.reply))[: context - len(prompt)]
        yield Example(prompt, reply)
        cursor += 1
