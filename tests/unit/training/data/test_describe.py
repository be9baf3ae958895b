"""Descriptions for people: what they list, and that a missing column is caught without reading rows."""

import pytest

from training.data.describe import describe_prepared, describe_source
from training.data.errors import DescriptionError
from training.data.prepare import prepare
from training.data.source import open_data


def test_source_and_prepared_folder(description, write, tmp_path, rows):
    description["statistics"] = {"keys": [{"key": ["user_id", "tab"]}]}
    description["columns"]["domain"] = {"column": "domain", "prefix": "x_"}
    source = open_data(write(description, log=rows))

    raw, done = describe_source(source), describe_prepared(prepare(source, tmp_path / "out"))

    assert raw["rows"] == sum(done["rows"].values()) == 7
    assert raw["domain"] == "x_<domain>"
    assert raw["features"]["context"] == ["tab (categorical)"]
    assert raw["statistics"] == ["user_id x tab"]
    assert done["num_domains"] == 2
    assert done["widths"] == {"user": [1 + 16, 16 * 2], "item": [1, 0], "context": [1, 0]}
    assert done["pairs"] == ["user_id_x_tab.lookup"]
    assert done["pairs_width"] == 2


def test_missing_column_is_caught(description, write, rows):
    description["columns"]["label"] = "click"

    with pytest.raises(DescriptionError, match="no column 'click'"):
        describe_source(open_data(write(description, log=rows)))
