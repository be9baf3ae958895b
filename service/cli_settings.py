"""What the commands of `ctr-serve` share: options made from settings, and how a command fails."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import typer
from pydantic import ValidationError

from service.errors import SettingsError
from service.settings import Settings, unknown_variables

NEVER_SHOWN = "redis_url"  # it may hold a password


def option(name: str) -> Any:
    """An option for a setting; its help is the setting's own sentence, its default and its variable."""
    field = Settings.model_fields[name]
    about = f"{field.description} [default: {field.default}; env CTR_{name.upper()}]"
    return typer.Option(help=about, show_default=False)


def load_settings(**given: Any) -> Settings:
    """Settings from options over the environment.

    Raises:
        SettingsError: A variable with our prefix is no setting, or a value is not allowed.
    """
    if odd := unknown_variables(os.environ):
        raise SettingsError(
            f"unknown variables {', '.join(odd)}; the settings are {', '.join(sorted(Settings.model_fields))}"
        )
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        if not name:  # settings that do not go together; the message names them
            raise SettingsError(f"settings: {problem['msg']}") from None
        shown = "" if name == NEVER_SHOWN else f", got {problem['input']!r}"
        raise SettingsError(f"setting {name}: {problem['msg']}{shown}") from None


def read_settings(**given: Any) -> Settings:
    """As `load_settings`, but anything wrong ends the command."""
    try:
        return load_settings(**given)
    except SettingsError as error:
        fail(str(error))


def complain(reason: str) -> None:
    """Say on stderr what is wrong."""
    typer.secho(f"ctr-serve: {reason}", err=True, fg=typer.colors.RED)


def fail(reason: str) -> NoReturn:
    """End the command with the reason on stderr and exit code 1."""
    complain(reason)
    raise typer.Exit(1)


__all__ = ["complain", "fail", "load_settings", "option", "read_settings"]
