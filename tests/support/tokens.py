"""A file of bearer tokens, and the header that names one of them."""

from __future__ import annotations

from pathlib import Path

TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105 - opens nothing
BEARER = (b"authorization", f"Bearer {TOKEN}".encode())


def write_tokens(folder: Path) -> Path:
    """Write a file with one token; returns its path."""
    path = folder / "tokens"
    path.write_text(f"{TOKEN}\n")
    return path
