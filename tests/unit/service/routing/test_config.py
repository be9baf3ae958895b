"""The routing file: what it may say, how shares become ranges, and how everything else is refused."""

from pathlib import Path

import pytest
import yaml

from service.errors import RoutingError
from service.routing.config import digest_of, parse_routing

FILE = Path("routing.yaml")
ARMS = [{"name": "control", "share": 0.5}, {"name": "treatment", "share": 0.5, "bundle": "canary"}]


def experiment(**changes):
    return {"name": "e", "domains": ["home"], "unit": "user", "salt": "s", "arms": ARMS, **changes}


def parse(**content):
    return parse_routing(yaml.safe_dump({"version": 1, **content}).encode(), FILE)


def arms(*rows):
    return [dict(zip(("name", "share", "room"), row, strict=False)) for row in rows]


def test_a_whole_file_is_read():
    raw = b"""
version: 1
override_header: x-ctr-arm
maturity: {zero_shot: hier, mature_rows: 100, prior_rows: 50}
experiments:
  - name: aread-vs-cesaa
    domains: [home, sport]
    unit: session
    salt: "2026-03"
    control: control
    holdout: {share: 0.05, salt: everywhere}
    overrides: {qa-1: treatment}
    shadow: {bundle: next, share: 0.1}
    arms:
      - {name: control, share: 0.5}
      - {name: treatment, share: 0.25, bundle: canary}
"""
    config = parse_routing(raw, FILE)
    (only,) = config.experiments
    assert config.references == ["canary", "hier", "next"]
    assert only.spans == [[(0.0, 0.5)], [(0.75, 1.0)]]
    assert (only.control_arm, only.shadow.budget_ms, only.shadow.max_waiting) == ("control", 100, 16)
    assert digest_of(raw) == digest_of(raw) != digest_of(raw + b"#")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (arms(("a", 0.3)), [[(0, 0.3)]]),
        (arms(("a", 0.3), ("b", 0.7)), [[(0, 0.3)], [(0.3, 1)]]),
        (
            arms(("a", 0.1), ("b", 0.2), ("c", 0.25)),
            [[(0, 0.1)], [(0.333333, 0.533333)], [(0.666666, 0.916666)]],
        ),
        (
            arms(("a", 0.5, 0.6), ("b", 0.2), ("c", 0.1)),
            [[(0, 0.5)], [(0.6, 0.8)], [(0.8, 0.9)]],
        ),
        (
            [{"name": "a", "ranges": [[0.0, 0.1], [0.5, 0.6]]}, {"name": "b", "ranges": [[0.1, 0.5]]}],
            [[(0, 0.1), (0.5, 0.6)], [(0.1, 0.5)]],
        ),
    ],
    ids=["one", "two towards each other", "even rooms", "given rooms", "ranges"],
)
def test_shares_become_ranges(given, expected):
    assert parse(experiments=[experiment(arms=given)]).experiments[0].spans == expected


REFUSED = {
    "version": ({"version": 2}, "version: Input should be 1"),
    "unknown key": ({"experiment": []}, "experiment: Extra inputs are not permitted"),
    "unknown arm key": (
        {"experiments": [experiment(arms=[{"name": "a", "weight": 1}])]},
        "experiments[0].arms[0].weight: Extra inputs are not permitted",
    ),
    "share as text": (
        {"experiments": [experiment(arms=[{"name": "a", "share": "0.5"}])]},
        "experiments[0].arms[0].share: Input should be a valid number",
    ),
    "salt as number": (
        {"experiments": [experiment(salt=2026)]},
        "experiments[0].salt: Input should be a valid string",
    ),
    "unit": (
        {"experiments": [experiment(unit="device")]},
        "experiments[0].unit: Input should be 'user', 'session'",
    ),
    "no arms": (
        {"experiments": [experiment(arms=[])]},
        "experiments[0].arms: List should have at least 1 item",
    ),
    "no domains": ({"experiments": [experiment(domains=[])]}, "List should have at least 1 item"),
    "name": ({"experiments": [experiment(name="A B")]}, "experiments[0].name: String should match pattern"),
    "reserved": (
        {"experiments": [experiment(arms=arms(("holdout", 1.0)))]},
        "arm 'holdout': the name is reserved",
    ),
    "neither": (
        {"experiments": [experiment(arms=[{"name": "a"}])]},
        "arm 'a' needs either a share or ranges",
    ),
    "room of ranges": (
        {"experiments": [experiment(arms=[{"name": "a", "room": 0.5, "ranges": [[0.0, 0.1]]}])]},
        "arm 'a' lists ranges; a room goes with a share",
    ),
    "falling range": (
        {"experiments": [experiment(arms=[{"name": "a", "ranges": [[0.5, 0.2]]}])]},
        "arm 'a': range [0.5, 0.2] does not rise",
    ),
    "mixed forms": (
        {
            "experiments": [
                experiment(arms=[{"name": "a", "ranges": [[0.0, 0.2]]}, {"name": "b", "share": 0.1}])
            ]
        },
        "experiment 'e': either all arms list ranges or all have shares",
    ),
    "overlap": (
        {
            "experiments": [
                experiment(
                    arms=[{"name": "a", "ranges": [[0.0, 0.5]]}, {"name": "b", "ranges": [[0.4, 0.6]]}]
                )
            ]
        },
        "experiment 'e': ranges of 'a' and 'b' overlap at 0.4",
    ),
    "too much": (
        {"experiments": [experiment(arms=arms(("a", 0.7), ("b", 0.5)))]},
        "experiment 'e': shares add up to 1.2, at most 1 is there",
    ),
    "narrow room": (
        {"experiments": [experiment(arms=arms(("a", 0.5), ("b", 0.2), ("c", 0.2)))]},
        "arm 'a' has share 0.5 in a room of 0.333333; give the arms a `room` each",
    ),
    "rooms": (
        {"experiments": [experiment(arms=arms(("a", 0.1, 0.7), ("b", 0.1, 0.7)))]},
        "experiment 'e': rooms add up to 1.4, at most 1 is there",
    ),
    "arm twice": (
        {"experiments": [experiment(arms=arms(("a", 0.1), ("a", 0.1)))]},
        "experiment 'e' has the arm 'a' twice",
    ),
    "control": (
        {"experiments": [experiment(control="x")]},
        "control 'x' is none of ['control', 'treatment']",
    ),
    "override": (
        {"experiments": [experiment(overrides={"qa": "x"})]},
        "the override of 'qa' names arm 'x', which is none of ['control', 'treatment']",
    ),
    "domain twice": (
        {"experiments": [experiment(domains=["home", "home"])]},
        "lists the domain 'home' twice",
    ),
    "experiment twice": (
        {"experiments": [experiment(), experiment(domains=["sport"], salt="t")]},
        "two experiments are named 'e'",
    ),
    "salt twice": (
        {"experiments": [experiment(), experiment(domains=["sport"], name="f")]},
        "two experiments have the salt 's'",
    ),
    "domain of two": (
        {"experiments": [experiment(), experiment(name="f", salt="t")]},
        "domain 'home': both 'e' and 'f' claim them",
    ),
    "all of two": (
        {"experiments": [experiment(domains="all"), experiment(domains="all", name="f", salt="t")]},
        "all domains: both 'e' and 'f' claim them",
    ),
    "header": ({"override_header": "Authorization"}, "override_header: String should match pattern"),
    "shadow": (
        {"experiments": [experiment(shadow={"bundle": "b", "share": 0.0})]},
        "experiments[0].shadow.share: Input should be greater than 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(name):
    content, message = REFUSED[name]
    with pytest.raises(RoutingError) as caught:
        parse(**content)
    assert str(caught.value).startswith("routing.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"version: [", "is not YAML: while parsing"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"- 1", "must hold a mapping with `version: 1`, got list"),
        (b"", "must hold a mapping with `version: 1`, got NoneType"),
        (b"version: 1\nversion: 1", "is not YAML: key 'version' twice"),
    ],
)
def test_what_is_no_mapping_is_refused(raw, message):
    with pytest.raises(RoutingError, match=r"^routing\.yaml: ") as caught:
        parse_routing(raw, FILE)
    assert message in str(caught.value)


def test_several_problems_are_told_at_once():
    with pytest.raises(RoutingError, match=r"unit: .*; experiments\[0\]\.salt: "):
        parse(experiments=[experiment(unit="x", salt=1)])


def test_the_example_of_the_readme_is_read():
    text = (Path(__file__).parents[4] / "service/README.md").read_text()
    example = text.split("```yaml\n# routing.yaml")[1].split("```")[0]
    config = parse_routing(("#" + example).encode(), FILE)
    assert config.references == ["canary", "hier", "next"]
    assert config.experiments[0].spans == [[(0.0, 0.5)], [(0.9, 1.0)]]
