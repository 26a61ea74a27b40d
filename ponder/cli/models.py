"""Commands on a model: ask it, talk to it, serve it, hand it on."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ponder.cli.app import (
    ApiKeyEnvOption,
    EndpointModelOption,
    HostOption,
    JsonFlag,
    OwnTemplateOption,
    TemperatureOption,
    TopPOption,
    app,
    print_json,
)
from ponder.errors import UsageError
from ponder.model.formats import Format, WeightType


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`mini`, a folder, a .gguf file or a Hub id.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask.")],
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="Prompt template. [default: the prompt as it is]")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", metavar="N", help="How many replies.")] = 1,
    temperature: TemperatureOption = 0.6,
    top_p: TopPOption = 0.95,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", help="Longest reply.")] = 512,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same reply.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model something.

    The answer goes to standard output and the thinking to standard error, so that the answer can be piped.

    \b
    Examples:
      ponder generate mini "What is 3 + 4?" --template mini
      ponder generate runs/r1-zero-mini/stages/zero/model "What is 3 + 4?" --template mini -n 4
    """
    from ponder.api import load
    from ponder.model.parser import split_thinking
    from ponder.model.templates import render

    loaded = load(model)
    text = prompt if template is None else render(template, prompt, loaded.tokenizer)
    replies = loaded.generate([text], samples, temperature, top_p, max_tokens, seed)[0]
    splits = [split_thinking(reply, prompt_tail=text) for reply in replies]
    if as_json:
        print_json([{"text": reply, **asdict(split)} for reply, split in zip(replies, splits, strict=True)])
        return
    for split in splits:
        typer.secho(split.thinking, dim=True, err=True)
        if split.answer is None:
            typer.echo("ponder: no answer, since the reply is unfinished: raise --max-tokens", err=True)
        else:
            typer.echo(split.answer)


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="RUN:STAGE, names, folders, .gguf files; ID=MODEL gives one an id."),
    ],
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8000,
    template: OwnTemplateOption = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=1, help="Replies computed at once, per model.")
    ] = 64,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, help="Replies that may wait; beyond, requests get 429.")
    ] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest reply that can be asked for.")
    ] = 4096,
    max_prompt: Annotated[int, typer.Option("--max-prompt", metavar="N", min=1, help="Longest prompt, in tokens.")] = (
        32768
    ),
    max_body: Annotated[int, typer.Option("--max-body", metavar="N", min=1, help="Largest request, in bytes.")] = (
        1_000_000
    ),
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Longest request, in seconds.")] = (
        600.0
    ),
    stop_timeout: Annotated[
        float, typer.Option("--stop-timeout", metavar="S", min=0.1, help="Seconds that replies have to end on SIGTERM.")
    ] = 30.0,
    memory: Annotated[
        float, typer.Option("--memory", metavar="GIB", min=0.001, help="Weights kept in memory, in GiB.")
    ] = 8.0,
) -> None:
    """Serve models by OpenAI's API, thinking apart (docs/api.md).

    Chat and plain completions, streamed or not, of several models at once; concurrent requests share their batch.
    Only this machine can connect, unless --host says otherwise and PONDER_API_KEY holds a key that clients must send.

    \b
    Examples:
      ponder serve mini
      ponder serve r1-mini:r1 base=mini --port 9000
    """
    from ponder.serving.server import api_key, serve_models
    from ponder.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        api_key=api_key(),
        concurrency=concurrency,
        queue=queue,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt,
        max_body_bytes=max_body,
        timeout_s=timeout,
        stop_timeout_s=stop_timeout,
        models_bytes=int(memory * 2**30),
    )
    served = [_served(text) for text in models]
    serve_models(served, settings, template, lambda text: typer.echo(f"ponder: {text}", err=True))


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="RUN:STAGE, `mini`, a folder, a .gguf file, a Hub id, an API's address."),
    ],
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Let the model think first.")] = True,
    budget: Annotated[
        int | None, typer.Option("--thinking-budget", metavar="N", min=1, help="Tokens of thinking, then it answers.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A message ahead of all.")] = None,
    template: OwnTemplateOption = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0, help="[default: the model's own, or 0.6]")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", min=1, help="Longest reply. [default: 4096; an API's own]"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed, the same replies.")] = None,
    endpoint_model: EndpointModelOption = None,
    api_key_env: ApiKeyEnvOption = None,
) -> None:
    """Talk to a model in the terminal.

    Thinking is shown dimmed, on standard error; answers go to standard output. Ctrl-C stops a reply, Ctrl-D ends the
    chat. In a pipe each line is a turn.

    \b
    Examples:
      ponder chat r1-mini:r1
      echo "Who are you?" | ponder chat mini --no-thinking
      ponder chat http://127.0.0.1:8000/v1 --endpoint-model r1-mini/r1
    """
    from ponder.serving.terminal import Conversation, Partner
    from ponder.serving.terminal import chat as talk

    partner: Partner
    if model.startswith(("http://", "https://")):
        from ponder.serving.terminal import Endpoint

        if endpoint_model is None:
            raise UsageError("MODEL is an address, so give the name of the model there with --endpoint-model")
        key = "" if api_key_env is None else os.environ.get(api_key_env, "")
        if api_key_env is not None and not key:
            raise UsageError(f"--api-key-env: the environment variable {api_key_env} is not set")
        wishes = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        partner = Endpoint(model, endpoint_model, key, wishes, budget)
    else:
        from ponder.serving.generation import Wish
        from ponder.serving.models import ModelSource, ServedModels
        from ponder.serving.terminal import LocalModel

        served = ServedModels({model: ModelSource(_folder(model), template)}).acquire(model)
        wish = Wish(
            max_tokens=max_tokens or 4096,
            temperature=temperature,
            seed=seed,
            splits_thinking=True,
            thinking_budget=budget,
        )
        partner = LocalModel(served, wish)
    talk(Conversation(partner, thinking, system))


@app.command()
def ui(
    runs: Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where the run folders lie.")] = Path("runs"),
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="A further model to chat with, as `serve` takes it. Repeatable."),
    ] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8080,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Open the web page: runs while they train, rollouts, tables, chat (docs/ui.md).

    Runs are read from their folders, and never slowed down. Chat offers the embedded models and every checkpoint of the
    runs. The API of `ponder serve` is served beside the page.

    \b
    Examples:
      ponder ui
      ponder ui --runs /data/runs --model other=/models/qwen --no-open
    """
    from ponder.serving.server import api_key
    from ponder.serving.settings import ServeSettings
    from ponder.ui.server import serve_ui

    settings = ServeSettings(host=host, port=port, api_key=api_key())
    serve_ui(
        runs,
        [_served(text) for text in model or ()],
        settings,
        opens,
        lambda url: typer.echo(f"ponder: {url}", err=True),
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="RUN:STAGE, `mini`, a folder, a .gguf file, a Hub id.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder that the export becomes.")],
    format_: Annotated[
        Format, typer.Option("--format", help="For transformers and vLLM, or for llama.cpp.")
    ] = "safetensors",
    type_: Annotated[
        WeightType | None,
        typer.Option("--type", help="How weights are stored. [default: F16 in GGUF, else the source's]"),
    ] = None,
    template: OwnTemplateOption = None,
    force: Annotated[bool, typer.Option("--force", help="Use DIR though it is in use; what is there is kept.")] = False,
) -> None:
    """Hand a model to transformers or llama.cpp, with a model card (docs/export.md).

    Tokenizer, chat template, sampling settings and licence travel along. The export is read back and its logits are
    compared with the model's before it takes its place; where they differ, nothing is left behind (exit code 1).

    \b
    Examples:
      ponder export r1-mini:r1 --to r1-mini
      ponder export runs/r1-mini/stages/r1/model --to r1-gguf --format gguf --type Q8_0
    """
    from ponder.evaluation.publishing import publish

    facts = publish(model, to, format_, type_, template, force)
    for note in facts.notes:
        typer.echo(f"ponder: {note}", err=True)
    typer.echo(f"{to}: {facts.weights} {facts.format}, logits differ by {facts.difference:.2g} of their deviation")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `ponder export` made.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Of the Hub: OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository one that anybody can see.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Upload an export to the Hugging Face Hub. Asks first.

    Read the model card (README.md) before: it is uploaded as it is.

    \b
    Examples:
      ponder push r1-mini someone/r1-mini
      ponder push r1-mini someone/r1-mini --public --yes
    """
    from ponder.evaluation.publishing import push as upload

    seen = "that anybody can see" if public else "that only its owner can see"
    if not yes:
        typer.confirm(f"Upload {folder} to {repository}, a repository {seen} if it is new?", abort=True)
    typer.echo(upload(folder, repository, private=not public))


def _folder(model: str) -> str:
    """A model's folder where it was named RUN:STAGE, else `model`. Raises `UsageError` for a reward model."""
    from ponder.evaluation.origin import find_origin

    return find_origin(model).reference


def _served(text: str) -> str:
    """The same for ID=MODEL."""
    name, equals, model = text.partition("=")
    return f"{name}={_folder(model)}" if equals and model else _folder(text)
