"""The id list of a feature snapshot: row i of the arrays belongs to line i.

One id a line, UTF-8, escaped like the inside of a JSON string, so that any id fits on its line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from service.contract.errors import ContractError


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Write ids, one a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(value, ensure_ascii=False)[1:-1] + "\n" for value in ids)


def read_ids(path: Path) -> list[str]:
    """Read what `write_ids` wrote.

    Raises:
        ContractError: The file is not UTF-8, or a line is not an escaped id.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ContractError(f"{path}: is not UTF-8 text") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    if "\\" not in text:
        return lines
    try:
        return [json.loads(f'"{line}"') if "\\" in line else line for line in lines]
    except ValueError:
        raise ContractError(f"{path}: holds a line that is no escaped id") from None
