"""The application that commands are added to, and what several of them share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ponder.errors import BrokenInputError, PonderError
from ponder.store.files import disk_advice


class OneSentenceGroup(TyperGroup):
    """Prints a `PonderError`, or what the system says of a file, as one sentence, and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PonderError as error:
            refused: PonderError = error
        except OSError as error:
            if error.filename is None:
                raise
            refused = BrokenInputError(f"cannot use {error.filename}: {disk_advice(error) or error.strerror}")
            refused.__cause__ = error
        typer.echo(f"ponder: {' '.join(str(refused).split())}", err=True)
        raise typer.Exit(refused.exit_code) from refused


app = typer.Typer(
    cls=OneSentenceGroup,
    help=(
        "Train reasoning models the way DeepSeek-R1 was trained, from a recipe, on this machine.\n\n"
        "\b\nStart here:\n"
        "  ponder plan r1-zero-mini      what the recipe will do, and how long it takes\n"
        "  ponder run r1-zero-mini       do it; the same command goes on after a stop\n"
        "  ponder report r1-zero-mini    one HTML page with the curves and the rollouts\n\n"
        "Exit codes: 0 done, 2 wrong use, 3 refused by preflight or gate, 4 broken input, "
        "5 interrupted but resumable, 1 anything else."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with Ponder.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting by path: stages.zero.steps=50. Repeatable."),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="The run folder. [default: runs/<recipe name>]")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name below runs/.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]
EndpointModelOption = Annotated[
    str | None, typer.Option("--endpoint-model", metavar="NAME", help="What the API at the address MODEL calls it.")
]
ApiKeyEnvOption = Annotated[
    str | None, typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable with the API's key.")
]
OwnTemplateOption = Annotated[
    str | None, typer.Option("--template", metavar="NAME", help="[default: the model's own, or its stage's]")
]
TemperatureOption = Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")]
TopPOption = Annotated[float, typer.Option("--top-p", metavar="P", help="Nucleus mass.")]
HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")]


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def count(value: int | None) -> str:
    """A number with its thousands parted; a dash where it is not known."""
    return "-" if value is None else f"{value:,}"
