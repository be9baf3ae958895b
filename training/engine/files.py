"""Write a file whole or not at all.

Invariant: a reader sees the old content or the new, never a part; a write that fails (a full disk, a kill)
leaves the old file.
"""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, then rename it over `path`.

    Args:
        path: The file to replace; its folder is made.
        write: Gets the temporary path.

    Raises:
        OSError: The file cannot be written. What `write` raises passes through; the temporary file goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` as UTF-8."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
