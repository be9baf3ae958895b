"""What the commands of `ctr-serve` share: options made from settings, and how a command fails."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import typer
from pydantic import ValidationError

from service.settings import Settings, unknown_variables

NEVER_SHOWN = "redis_url"  # it may hold a password


def option(name: str) -> Any:
    """An option for a setting; its help is the setting's own sentence, its default and its variable."""
    field = Settings.model_fields[name]
    about = f"{field.description} [default: {field.default}; env CTR_{name.upper()}]"
    return typer.Option(help=about, show_default=False)


def read_settings(**given: Any) -> Settings:
    """Settings from options over the environment; anything wrong ends the command."""
    if odd := unknown_variables(os.environ):
        fail(
            f"unknown variables {', '.join(odd)}; the settings are {', '.join(sorted(Settings.model_fields))}"
        )
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        if not name:  # settings that do not go together; the message names them
            fail(f"settings: {problem['msg']}")
        fail(
            f"setting {name}: {problem['msg']}"
            + ("" if name == NEVER_SHOWN else f", got {problem['input']!r}")
        )


def fail(reason: str) -> NoReturn:
    """End the command with the reason on stderr and exit code 1."""
    typer.secho(f"ctr-serve: {reason}", err=True, fg=typer.colors.RED)
    raise typer.Exit(1)


__all__ = ["fail", "option", "read_settings"]
