"""Options that several commands take, and how options are read and shown where Typer says too little."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import faithad


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"faithad {faithad.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
]
Config = Annotated[str, typer.Option("--config", "-c", help="The study's YAML file, local or a URI.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting, such as train.epochs=3. May be given several times."),
]
Redo = Annotated[
    bool, typer.Option("--redo", help="Remove results that were made with other settings and make them again.")
]
DetectionTolerance = Annotated[
    float | None,
    typer.Option(
        help="With --audit: an event is true if at least this share of its time is labelled; 0.05 by default."
    ),
]
GroundTruthTolerance = Annotated[
    float | None,
    typer.Option(help="With --audit: a label is found if true events cover at least this share of it; 0.5 by default."),
]


class Command(TyperCommand):
    """Refuses an option that is given twice and takes one value, and names the value of a wrong one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            if isinstance(option, TyperOption) and not (option.multiple or option.is_flag) and order.count(option) > 1:
                raise typer.BadParameter("is given twice, and takes one value.", ctx=ctx, param=option)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _in_words(error)
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


def _in_words(error: typer.BadParameter) -> str:
    """What is wrong with a value. Typer names neither the value nor the bound that was not crossed."""
    from pydantic import ValidationError

    from faithad.config.file import in_words

    if not isinstance(error.__cause__, ValidationError):
        return error.message
    details = error.__cause__.errors()[0]
    bounds = {"ge": getattr(error.param, "min", None), "le": getattr(error.param, "max", None)}
    limits = {name: bound for name, bound in bounds.items() if bound is not None}
    return f"{in_words(details, limits)}, found {details['input']!r}"


def _plain_flags(parameters: list[Any]) -> list[Any]:
    """Show no value in the help of a flag, which takes none."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
