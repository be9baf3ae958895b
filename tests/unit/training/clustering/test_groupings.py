"""The artefact and the grouping baselines."""

import itertools
import json

import numpy as np
import pytest

from training.clustering.affinity import LookaheadGram
from training.clustering.assignment import (
    cdc_assignment,
    load_assignment,
    make_assignment,
    save_assignment,
    state_matrices,
)
from training.clustering.baselines import (
    CdcGroups,
    Grouping,
    Groups,
    ManualGroups,
    OneCluster,
    OnePerDomain,
    RandomGroups,
    TagGroups,
    climbed,
    mutual_affinity,
    tag_score,
)
from training.clustering.errors import AssignmentError, GroupingError, MatrixError, RulesError, StateError
from training.clustering.rules import CdcRules
from training.clustering.state import start, update

NAMES = ("app", "feed", "game", "home", "shop")
VALID = {
    "method": "manual",
    "num_clusters": 2,
    "domains": ["a", "b", "c"],
    "targets": [["a"], ["b", "c"]],
    "sources": [["a", "c"], ["b"]],
}


def small_state():
    state = start([1.0, 1, 1, 5, 1], CdcRules(num_clusters=2, num_treatments=20, distance="cosine"))
    gram = np.random.default_rng(0).normal(size=(5, 5))
    return update(state, state.plan(), LookaheadGram(base=np.ones(5), gram=gram, step_size=0.1))


def test_assignment_of_a_state(tmp_path):
    """What is saved is what is read; the default is the cluster with most rows."""
    state = small_state()
    made = cdc_assignment(state, NAMES, data_digest="d1", config_digest="c1")
    save_assignment(tmp_path, made, state_matrices(state))
    read = load_assignment(tmp_path)
    assert (read, read.digest) == (made, made.digest)
    assert read.labels.tolist() == state.clusters.labels.tolist()
    assert read.sources == tuple(tuple(NAMES[i] for i in sorted(ids)) for ids in state.clusters.sources)
    assert read.cluster_of("feed") == state.clusters.labels[1]
    assert read.cluster_of("new") == read.default_cluster == state.clusters.labels[3]
    assert (read.method, read.num_updates, read.data_digest, read.config_digest) == ("cdc", 1, "d1", "c1")
    with np.load(tmp_path / "matrices.npz") as saved:
        assert sorted(saved) == ["mc", "mh", "mi", "mt"]
        assert np.array_equal(saved["mi"], state.clusters.mi)


def test_assignment_without_matrices(tmp_path):
    """A baseline has none."""
    groups = OneCluster().group(NAMES)
    save_assignment(tmp_path, make_assignment(groups, NAMES))
    assert load_assignment(tmp_path).targets == (NAMES,)
    assert not (tmp_path / "matrices.npz").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2; this code reads 1"),
        ({"domains": ["a", "b", "b"]}, "domains hold 'b' twice"),
        ({"num_clusters": 3}, "2 targets; num_clusters is 3"),
        ({"sources": [["a"], []]}, r"sources\[1\] is empty"),
        ({"sources": [["a"], ["x"]]}, r"sources\[1\] has the unknown domain 'x'"),
        ({"sources": [["a", "a"], ["b"]]}, r"sources\[0\] holds 'a' twice"),
        ({"targets": [["a", "b"], ["b", "c"]]}, "domain 'b' is in two targets"),
        ({"targets": [["a"], ["b"]]}, "domain 'c' is in no target"),
        ({"centres": ["a"]}, "1 centres; num_clusters is 2"),
        ({"centres": ["b", "c"]}, r"centre 'b' is not in targets\[0\]"),
        ({"default_cluster": 2}, "default_cluster 2; num_clusters is 2"),
        ({"attached": ["z"]}, "attached has the unknown domain 'z'"),
        ({"tower": 1}, "tower: Extra inputs are not permitted"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, change, message):
    """The message names the file and what is wrong."""
    (tmp_path / "assignment.json").write_text(json.dumps(VALID))
    assert load_assignment(tmp_path).clusters == {"a": 0, "b": 1, "c": 1}
    (tmp_path / "assignment.json").write_text(json.dumps(VALID | change))
    with pytest.raises(AssignmentError, match=f"assignment.json: .*{message}"):
        load_assignment(tmp_path)


def test_assignment_refusals(tmp_path):
    """Missing file, names that do not fit, a state without clusters."""
    with pytest.raises(AssignmentError, match=r"assignment.json: No such file"):
        load_assignment(tmp_path)
    with pytest.raises(AssignmentError, match="5 names for 2 domains"):
        make_assignment(OneCluster().group(("a", "b")), NAMES)
    empty = Groups(method="odd", labels=np.zeros(2, dtype=int), sources=(np.array([0]), np.array([1])))
    with pytest.raises(AssignmentError, match=r"targets\[1\] is empty"):
        make_assignment(empty, ("a", "b"))
    with pytest.raises(StateError, match="no clusters yet"):
        state_matrices(start([1.0], CdcRules(num_clusters=1)))


def test_every_grouping_keeps_the_interface():
    """Labels use all clusters, sources are never empty, and names become an assignment."""
    affinity = np.random.default_rng(0).normal(size=(5, 5))
    groupings: list[Grouping] = [
        OneCluster(),
        OnePerDomain(),
        RandomGroups(num_clusters=2),
        TagGroups(affinity=affinity, num_clusters=2),
        CdcGroups(small_state()),
    ]
    for grouping in groupings:
        made = make_assignment(grouping.group(NAMES), NAMES)
        assert made.method == grouping.method
        if made.method != "cdc":
            assert made.sources == made.targets


def test_one_and_each():
    """The two ends."""
    assert OneCluster().group(NAMES).labels.tolist() == [0] * 5
    assert OnePerDomain().group(NAMES).labels.tolist() == [0, 1, 2, 3, 4]


def test_random_groups_are_even_and_repeatable():
    """Sizes differ by at most one; the seed decides."""
    names = tuple(str(i) for i in range(32))
    one, again, other = (RandomGroups(num_clusters=5, seed=s).group(names).labels for s in (0, 0, 1))
    assert sorted(np.bincount(one)) == [6, 6, 6, 7, 7]
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.yaml", "- [app, shop]\n- [feed, game, home]\n"),
        ("g.yaml", "buy: [app, shop]\nread: [feed, game, home]\n"),
        ("g.json", '[["app", "shop"], ["feed", "game", "home"]]'),
    ],
)
def test_manual_groups(tmp_path, name, text):
    """List or mapping, yaml or json."""
    (tmp_path / name).write_text(text)
    assert ManualGroups(tmp_path / name).group(NAMES).labels.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [app, app]", "domain 'app' is listed twice"),
        ("- [app, feed, game, home, shop, tv]", "'tv' is not a domain of this data"),
        ("- [app, feed, game, home]", "domain 'shop' is in no group"),
        ("- []", "must hold groups, each a list of at least one domain name"),
        ("5", "must hold groups"),
        ("[", "cannot be read"),
    ],
)
def test_manual_groups_refuse(tmp_path, text, message):
    """The message names the file."""
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(GroupingError, match=f"g.yaml: {message}"):
        ManualGroups(tmp_path / "g.yaml").group(NAMES)


def literal_tag_score(affinity, labels):
    """Mean affinity onto each domain of the other members of its cluster, summed."""
    total = 0.0
    for v in range(len(labels)):
        others = [u for u in range(len(labels)) if u != v and labels[u] == labels[v]]
        total += sum(affinity[u, v] for u in others) / len(others) if others else 0.0
    return total


@pytest.mark.parametrize("seed", range(4))
def test_tag_finds_the_best_partition(seed):
    """Against all partitions of 7 domains into 3 clusters."""
    affinity = np.random.default_rng(seed).normal(size=(7, 7))
    best = max(
        literal_tag_score(affinity, labels)
        for labels in itertools.product(range(3), repeat=7)
        if len(set(labels)) == 3
    )
    names = tuple("abcdefg")
    labels = TagGroups(affinity=affinity, num_clusters=3).group(names).labels
    assert literal_tag_score(affinity, labels) == pytest.approx(best)
    assert tag_score(mutual_affinity(affinity), labels, 3) == pytest.approx(best)


def test_tag_climb_ends_where_no_move_helps():
    """Running sums against the literal score for every single move."""
    rng = np.random.default_rng(5)
    affinity = rng.normal(size=(12, 12))
    labels = climbed(mutual_affinity(affinity), rng.permutation(np.arange(12) % 4), 4)
    score = literal_tag_score(affinity, labels)
    for d, k in itertools.product(range(12), range(4)):
        moved = labels.copy()
        moved[d] = k
        if len(set(moved)) == 4:
            assert literal_tag_score(affinity, moved) <= score + 1e-9


def test_grouping_refusals():
    """K that cannot be, an affinity that does not fit, a state of other domains."""
    with pytest.raises(RulesError, match="K is 6; with 5 domains"):
        RandomGroups(num_clusters=6).group(NAMES)
    with pytest.raises(MatrixError, match=r"affinity has shape \(2, 2\); it must be 5 x 5"):
        TagGroups(affinity=np.zeros((2, 2)), num_clusters=2).group(NAMES)
    with pytest.raises(GroupingError, match="2 domains; the state has 5"):
        CdcGroups(small_state()).group(("a", "b"))
