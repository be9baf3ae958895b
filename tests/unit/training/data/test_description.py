"""dataset.yaml: what is refused, and how the message reads."""

import copy

import pytest
import yaml

from training.data.errors import DescriptionError
from training.data.source import open_data, parse_description, recipe_names, recipe_text


def _set(tree, path, value):
    *parents, last = path
    for key in parents:
        tree = tree[key]
    tree[last] = value


NUMBER = {"name": "n", "entity": "item", "kind": "numeric", "column": "x"}
SEQUENCE = {
    "name": "s",
    "entity": "user",
    "kind": "sequence",
    "max_len": 3,
    "fields": [{"name": "i", "column": "x"}],
}

REFUSED = [
    (["colour"], "red", ["colour: unknown key"]),
    (["columns", "label"], None, ["columns.label", "got None"]),
    (
        ["columns", "time"],
        {"column": "t", "unit": "h"},
        ["columns.time.unit", "'s', 'ms', 'us' or 'step'", "got 'h'"],
    ),
    (["features"], [], ["features", "at least 1 item"]),
    (["features", 0, "kind"], "text", ["features.0", "'categorical', 'multi', 'sequence', 'numeric'"]),
    (["features", 0, "max_len"], 3, ["features.0.categorical.max_len: unknown key"]),
    (["features", 1, "name"], "user_id", ["the name 'user_id' is used twice"]),
    (
        ["features", 1, "encoder"],
        "brand",
        ["'item_id' shares the encoder 'brand', which no feature has", "user_id"],
    ),
    (["features", 1, "column"], "label", ["'item_id' reads column 'label', which is the label"]),
    (["features", 1, "column"], "time_ms", ["which is the time column", "from_time"]),
    (["features", 1, "column"], "split", ["which is the split column"]),
    (["features", 1, "column"], {"from_time": "hour"}, ["entity must be context, not item"]),
    (["features", 1, "column"], {"from_time": "month"}, ["'hour' or 'weekday'", "got 'month'"]),
    (["split"], {"valid_fraction": 0.1}, ["valid_fraction", "columns.split is 'split'"]),
    (["statistics"], {"targets": ["buy"]}, ["'buy' is neither the label nor an outcome", "label"]),
    (["statistics"], {"keys": [{"key": ["brand"]}]}, ["'brand' is unknown", "item_id"]),
    (["statistics"], {"keys": [{"key": ["tab"]}]}, ["'tab' must belong to user or item"]),
    (["statistics"], {"keys": [{"key": ["user_id", "user_id"]}]}, ["both keys belong to user"]),
    (["statistics"], {"keys": [{"key": ["user_id"], "parent": True}]}, ["parent needs a pair"]),
    (["statistics"], {"snapshot": "1w"}, ["statistics.snapshot", "got '1w'"]),
    (["history"], {"lists": [{"feature": "user_id"}]}, ["'user_id' is no sequence feature of the user"]),
    (["history"], {"factors": [{"name": "f", "lists": ["s"]}]}, ["'s' is not in history.lists"]),
]


@pytest.mark.parametrize(("path", "value", "said"), REFUSED, ids=lambda v: str(v)[:40])
def test_refusal_names_field_value_and_what_is_allowed(description, path, value, said):
    _set(description, path, value)

    with pytest.raises(DescriptionError) as caught:
        parse_description(yaml.safe_dump(description))

    assert [part for part in said if part not in str(caught.value)] == []


def test_outcome_is_refused_as_input_but_taken_as_target(description):
    description["outcomes"] = ["dwell"]
    description["statistics"] = {"targets": ["label", "dwell"]}
    parse_description(yaml.safe_dump(description))
    wrong = copy.deepcopy(description)
    wrong["features"].append({**NUMBER, "column": "dwell"})

    with pytest.raises(DescriptionError, match="'n' reads column 'dwell', which is an outcome"):
        parse_description(yaml.safe_dump(wrong))


@pytest.mark.parametrize("place", ["user", "item", "domain"])
def test_outcome_is_refused_in_a_role(description, place):
    description["outcomes"] = ["dwell"]
    description["columns"][place] = "dwell"

    with pytest.raises(DescriptionError, match=f"columns.{place}: column 'dwell' is an outcome"):
        parse_description(yaml.safe_dump(description))


def test_outcome_is_refused_as_weights_and_as_sequence_field(description):
    description["outcomes"] = ["x"]
    multi = {"name": "m", "entity": "item", "kind": "multi", "max_len": 2, "column": "y", "weights": "x"}
    for feature in (multi, SEQUENCE):
        changed = copy.deepcopy(description)
        changed["features"].append(feature)
        with pytest.raises(DescriptionError, match="reads column 'x', which is an outcome"):
            parse_description(yaml.safe_dump(changed))


def test_share_of_a_number_and_mean_of_a_category_are_refused(description):
    description["features"] += [NUMBER, SEQUENCE]
    for of, how, kind in (("n", "share", "categorical"), ("item_id", "mean", "numeric")):
        description["history"] = {"lists": [{"feature": "s", "aggregates": [{"of": of, "how": how}]}]}
        with pytest.raises(DescriptionError, match=f"cannot take the {how} of '{of}'; it must be a {kind}"):
            parse_description(yaml.safe_dump(description))


def test_encoder_of_a_borrower_is_refused(description):
    description["features"] += [
        {"name": "b", "entity": "item", "kind": "categorical", "encoder": "item_id"},
        {"name": "c", "entity": "item", "kind": "categorical", "encoder": "b"},
    ]

    with pytest.raises(
        DescriptionError, match="'c' shares the encoder of 'b', which itself shares 'item_id'"
    ):
        parse_description(yaml.safe_dump(description))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "got nothing and no columns.split"),
        ({"valid_fraction": 0.1, "test_from": 3}, "test_from', 'valid_fraction"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "is 1.1; must be below 1"),
    ],
)
def test_split_rule_must_be_whole(description, rule, said):
    del description["columns"]["split"]
    description["split"] = rule

    with pytest.raises(DescriptionError, match=said):
        parse_description(yaml.safe_dump(description))


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), ("[1]", "expected a mapping, got list")])
def test_text_that_is_no_mapping(text, said):
    with pytest.raises(DescriptionError, match=said):
        parse_description(text)


def test_files_that_do_not_exist(description, write, tmp_path):
    with pytest.raises(DescriptionError, match=r"dataset\.yaml: not found.*kuairand_tag"):
        open_data(tmp_path)
    with pytest.raises(DescriptionError, match=r"interactions: no file matches .*log\.parquet"):
        open_data(write(description))
    description["users"] = {"file": "users.parquet", "key": "user_id"}
    with pytest.raises(DescriptionError, match=r"users: file .*users\.parquet does not exist"):
        open_data(write(description, log=[{"user_id": 1}]))
    description["root"] = "elsewhere"
    with pytest.raises(DescriptionError, match=r"data folder .*elsewhere does not exist"):
        open_data(write(description))
    description["interactions"] = []
    del description["root"]
    with pytest.raises(DescriptionError, match="interactions: the list is empty"):
        open_data(write(description))


def test_recipes_parse_and_unknown_ones_are_refused(tmp_path):
    kuairand = ("kuairand_items", "kuairand_tab", "kuairand_tag")
    assert recipe_names() == ("epinions27", *kuairand, "tiny")
    for name in recipe_names():
        first = "rating" if name == "epinions27" else "long_view"
        assert parse_description(recipe_text(name)).outcomes[0] == first
    with pytest.raises(DescriptionError, match=r"no recipe 'nile'; allowed: .*tiny"):
        open_data(tmp_path, "nile")


PAIR = {"name": "x", "among": "seen", "chosen": "seen"}
SUMS = {"name": "f", "lists": ["seen"]}


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("rasch", {**PAIR, "chosen": "kept"}, "history.rasch 'x': 'kept' is not in history.lists"),
        ("ratios", {**PAIR, "among": "kept"}, "history.ratios 'x': 'kept' is not in history.lists"),
        (
            "ratios",
            {**PAIR, "shown": "user_id"},
            "shown is 'user_id'; it must be a numeric feature of the user",
        ),
        ("factors", {**SUMS, "sums": [{}]}, "'f': a sum needs one of over and residuals"),
        (
            "factors",
            {**SUMS, "sums": [{"over": "seen", "residuals": "x"}]},
            "needs one of over and residuals",
        ),
        ("factors", {**SUMS, "sums": [{"over": "kept"}]}, "'f': 'kept' is not in history.lists"),
        ("factors", {**SUMS, "sums": [{"residuals": "y"}]}, "'y' is not in history.rasch; allowed: []"),
    ],
)
def test_history_makers_name_what_they_lack(description, part, value, said):
    field = {"name": "item", "column": "seen", "encoder": "item_id"}
    description["features"].append(
        {"name": "seen", "entity": "user", "kind": "sequence", "max_len": 2, "fields": [field]}
    )
    description["history"] = {"lists": [{"feature": "seen"}], part: [value]}

    with pytest.raises(DescriptionError) as caught:
        parse_description(yaml.safe_dump(description))

    assert said in str(caught.value)
