"""Errors of the data room. Each message names the file, field or column, the value found and what is allowed.

DataError
+-- DescriptionError   dataset.yaml contradicts itself or the files it names
+-- TableError         a value of a raw table cannot be used
+-- LeakError          an input would tell the model its own label, or time runs backwards
+-- PreparedError      a prepared folder is missing, damaged, foreign or too new
+-- AugmentError       augmented rows cannot be made, or are asked for where they must not be
"""


class DataError(ValueError):
    """Base of every error of the data room."""


class DescriptionError(DataError):
    """dataset.yaml contradicts itself or the files it names."""


class TableError(DataError):
    """A value of a raw table cannot be used."""


class LeakError(DataError):
    """An input would tell the model its own label, or the splits overlap in time."""


class PreparedError(DataError):
    """A prepared folder is missing, damaged, foreign or too new."""


class AugmentError(DataError):
    """Augmented rows cannot be made, or are asked for where they must not be."""
