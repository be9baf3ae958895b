"""What can be wrong with stored features; shown to operators, never to callers of `/score`."""

from __future__ import annotations


class FeatureStoreError(Exception):
    """Base of all."""


class BlobError(FeatureStoreError):
    """A row that must not be stored: an id out of range, or a number that is not finite."""


class StoreReplyError(FeatureStoreError):
    """The store answered with an error, or out of step."""


class StoreLostError(FeatureStoreError):
    """The store cannot be reached, or the connection broke."""


class LoadError(FeatureStoreError):
    """What is to be loaded cannot be read, or does not fit the schema."""


__all__ = ["BlobError", "FeatureStoreError", "LoadError", "StoreLostError", "StoreReplyError"]
