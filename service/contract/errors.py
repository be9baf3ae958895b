"""Errors of the contract. Each message names what was offending and what was allowed.

    ContractError
    +-- SchemaError       a feature schema contradicts itself
    +-- EncodeError       a value cannot be encoded; carries feature, row and value
    +-- BundleError       a bundle is corrupt, truncated, foreign or too new; carries the file
    +-- StoreError        a model store lacks the bundle or alias that was asked for

Messages may be shown to the caller of `/score` only for `EncodeError`, whose text holds nothing but
the caller's own value and the schema's limits.
"""

from __future__ import annotations

from pathlib import Path


class ContractError(Exception):
    """Base of every error of the contract."""


class SchemaError(ContractError):
    """A feature schema contradicts itself."""


class EncodeError(ContractError):
    """A raw value does not fit its feature.

    Attributes:
        feature: Name of the feature.
        row: Index of the offending row within the column, or None when the whole column is wrong.
        reason: What was wrong with the value, and what is allowed.
    """

    def __init__(self, feature: str, reason: str, *, row: int | None = None) -> None:
        where = f"feature '{feature}'" if row is None else f"feature '{feature}', row {row}"
        super().__init__(f"{where}: {reason}")
        self.feature = feature
        self.row = row
        self.reason = reason


class BundleError(ContractError):
    """A bundle must not be served.

    Attributes:
        file: The file that is missing, damaged, foreign or too new.
    """

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class StoreError(ContractError):
    """A model store does not hold what was asked for."""
