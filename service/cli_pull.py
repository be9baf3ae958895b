"""`ctr-serve pull`: bundles from an object store into the folder that a service reads; once, or on and on.

Reads an address; writes a model store. Invariant: once, a failure is exit code 1; on and on, a failure is
said and the last good bundles and aliases stay.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from service.cli_settings import complain, fail, option, read_settings
from service.contract.errors import ContractError
from service.contract.store import ModelStore


def pull(
    url: Annotated[
        str, typer.Argument(help="Address of the store: s3://, gs://, abfs://, ...: what fsspec reads.")
    ],
    store: Annotated[Path | None, option("store")] = None,
    every_s: Annotated[
        float, typer.Option(min=0, help="Time between looks, until SIGTERM; 0: look once and end.")
    ] = 0.0,
) -> None:
    """Copy the bundles that aliases name, verify them, and follow the aliases.

    What no alias names any more is removed at the next change but one, so that nothing goes while it is
    served.
    """
    from service.contract.remote import RemoteStore

    home = ModelStore(read_settings(store=store).store)
    try:
        remote = RemoteStore(url)
    except ContractError as error:
        fail(str(error))
    ends = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.set())
    while True:
        try:
            found = remote.pull(home)
        except (ContractError, OSError) as error:
            if not every_s:
                fail(str(error))
            complain(str(error))
        else:
            for bundle_id in found.new:
                typer.echo(f"pulled {bundle_id[:12]}")
            for bundle_id in found.removed:
                typer.echo(f"removed {bundle_id[:12]}")
        if not every_s or ends.wait(every_s):
            return


__all__ = ["pull"]
