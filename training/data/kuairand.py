"""Point the KuaiRand-Pure recipes at a folder of its parquet files.

Reads nothing but file names; writes one small `dataset.yaml` whose `root` is the data folder, so the data
itself may lie on a read-only disk. Invariant: what is written opens with `open_data`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml

from service.contract.files import write_atomic
from training.data.source import DESCRIPTION_FILE, DataSource, open_data, recipe_text

RECIPES = {"tag": "kuairand_tag", "tab": "kuairand_tab"}


def prepare_raw(
    data_dir: Path | str, out_dir: Path | str, domains: Literal["tag", "tab"] = "tag"
) -> DataSource:
    """Write a `dataset.yaml` for a KuaiRand-Pure folder.

    Args:
        data_dir: Folder with interactions, users, items and user_history (.parquet).
        out_dir: Folder for `dataset.yaml`.
        domains: What a domain is: the first tag of the video (43 domains), or the tab of the app (15).

    Returns:
        The opened source.

    Raises:
        DescriptionError: A file of the data set does not exist.
    """
    recipe = RECIPES[domains]
    open_data(data_dir, recipe)
    root = yaml.safe_dump({"root": str(Path(data_dir).resolve())})
    file = Path(out_dir) / DESCRIPTION_FILE
    write_atomic(file, recipe_text(recipe) + b"\n" + root.encode())
    return open_data(file)
