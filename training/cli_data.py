"""The prepared data of a `ctr-train` command: opened, or made on first use.

Invariant: one process prepares; the others wait for it and open what it made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.data.prepared import PreparedDataset
    from training.engine.distributed import RankGroup
    from training.track import Watcher


def prepared_data(
    config: RunConfig,
    *,
    data: Path | None,
    cache: Path | None,
    out: Path,
    watcher: Watcher,
    group: RankGroup | None = None,
) -> PreparedDataset:
    """Open the prepared data, made on first use, and link it into the run folder.

    Args:
        config: Names the recipe.
        data: Raw data, for the first use.
        cache: Folder of the prepared data; None for the run folder's own.
        out: The run folder.
        watcher: Shows progress.
        group: Processes that want it; None for this one alone.

    Raises:
        RunError: There is none, and no raw data is given.
        DataError: It cannot be made or read.
    """
    from training.data.prepared import PreparedDataset
    from training.engine.distributed import ALONE

    def folder() -> Path:
        return _folder(config, data=data, cache=cache, out=out, watcher=watcher)

    return PreparedDataset.open((group or ALONE).on_first(folder))


def _folder(config: RunConfig, *, data: Path | None, cache: Path | None, out: Path, watcher: Watcher) -> Path:
    from training.data.prepare import prepare
    from training.data.prepared import MANIFEST_FILE
    from training.data.source import open_data
    from training.engine.artefacts import RunFolder
    from training.engine.errors import RunError

    home = RunFolder(out).prepared
    folder = home if cache is None else cache
    if not (folder / MANIFEST_FILE).is_file():
        if data is None:
            raise RunError(f"{folder}: no prepared data there; give --data to make it")
        source = open_data(data, config.data.recipe)
        watcher.say(f"preparing {data} into {folder}")
        prepare(source, folder, progress=watcher.reach)
    if cache is not None and not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        home.symlink_to(cache.resolve(), target_is_directory=True)
    return folder
