"""Units keep their arm as shares change, arms get their shares, and salts draw independently."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from service.routing.assign import HOLDOUT, NOBODY, Assigner, Ranges, position, positions
from service.routing.config import ExperimentConfig

UNITS = [f"user-{n}" for n in range(100_000)]
FEW = UNITS[:2_000]


def experiment(arms, **changes):
    plain = {"name": "e", "domains": "all", "unit": "user", "salt": "s1"}
    return ExperimentConfig.model_validate({**plain, "arms": arms, **changes})


def shares(*values, rooms=None):
    arms = [{"name": f"a{n}", "share": value} for n, value in enumerate(values)]
    for arm, room in zip(arms, rooms or [], strict=False):
        arm["room"] = room
    return arms


def assigner(config, **changes):
    plain = {
        "experiment": config.name,
        "salt": config.salt,
        "arms": [arm.name for arm in config.arms],
        "spans": config.spans,
        "control": config.control_arm,
        "holdout_share": 0.0,
        "holdout_salt": "h",
        "overrides": {},
        "killed": False,
    }
    return Assigner(**{**plain, **changes})


def arms_of(config, units=FEW):
    return assigner(config).assign_many(units)


def test_a_position_is_the_upper_53_bits_of_the_hash():
    digest = xxhash.xxh3_64(b"salt\x00u\xc3\xa4").intdigest()
    assert position("salt", "uä") == (digest // 2**11) / 2**53


@given(st.text(alphabet=st.characters(codec="utf-8")), st.text(alphabet=st.characters(codec="utf-8")))
def test_positions_lie_in_the_unit_interval_and_depend_on_nothing_else(salt, unit):
    assert 0 <= position(salt, unit) < 1
    assert positions(salt, [unit, unit]).tolist() == [position(salt, unit)] * 2


hundredths = st.integers(0, 100)


@st.composite
def two_steps(draw):
    """Shares of one to five arms, and the same with one grown and the others the same or smaller."""
    count = draw(st.integers(1, 5))
    room = 100 if count <= 2 else 100 // count
    before, left = [], 100
    for _ in range(count):
        before.append(draw(st.integers(0, min(room, left))))
        left -= before[-1]
    grown = draw(st.integers(0, count - 1))
    after = [share if n == grown else draw(st.integers(0, share)) for n, share in enumerate(before)]
    rest = sum(after) - after[grown]
    after[grown] = draw(st.integers(before[grown], min(room, 100 - rest)))
    return [s / 100 for s in before], [s / 100 for s in after], grown


@settings(max_examples=60, deadline=None)
@given(two_steps())
def test_growing_one_arm_moves_nobody_out_of_it(steps):
    before, after, grown = steps
    was, now = arms_of(experiment(shares(*before))), arms_of(experiment(shares(*after)))
    name = f"a{grown}"
    assert all(new == name for old, new in zip(was, now, strict=True) if old == name)


@settings(max_examples=60, deadline=None)
@given(two_steps())
def test_growing_into_what_nobody_has_moves_nobody_at_all(steps):
    before, after, grown = steps
    only = [after[n] if n == grown else share for n, share in enumerate(before)]
    if sum(round(s * 100) for s in only) > 100:
        return
    was, now = arms_of(experiment(shares(*before))), arms_of(experiment(shares(*only)))
    assert all(old in (None, new) for old, new in zip(was, now, strict=True))
    assert {new for old, new in zip(was, now, strict=True) if old != new} <= {f"a{grown}"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=4, max_size=4), st.lists(hundredths, min_size=8, max_size=8))
def test_within_rooms_any_change_of_shares_moves_nobody_between_arms(rooms, parts):
    def config(chosen):
        values = [room * part / 10_000 for room, part in zip(rooms, chosen, strict=True)]
        return experiment(shares(*values, rooms=[room / 100 for room in rooms]))

    was, now = arms_of(config(parts[:4])), arms_of(config(parts[4:]))
    assert all(old == new or None in (old, new) for old, new in zip(was, now, strict=True))


@pytest.mark.parametrize("salt", ["s1", "s2"])
@pytest.mark.parametrize("values", [(0.5, 0.5), (0.9, 0.1), (0.01, 0.02), (0.3, 0.2, 0.33)])
def test_arms_get_their_shares_within_three_sigma(salt, values):
    arms = arms_of(experiment(shares(*values), salt=salt), UNITS)
    for number, share in enumerate(values):
        sigma = np.sqrt(len(UNITS) * share * (1 - share))
        assert abs(arms.count(f"a{number}") - len(UNITS) * share) <= 3 * sigma


def test_the_holdout_takes_its_share_from_all_arms_alike():
    held = assigner(experiment(shares(0.5, 0.5)), holdout_share=0.1).assign_many(UNITS)
    plain = assigner(experiment(shares(0.5, 0.5))).assign_many(UNITS)
    out = [was for was, now in zip(plain, held, strict=True) if now == HOLDOUT]
    assert abs(len(out) - 10_000) <= 3 * np.sqrt(100_000 * 0.09)
    assert abs(out.count("a0") - len(out) / 2) <= 3 * np.sqrt(len(out) / 4)
    assert all(now in (was, HOLDOUT) for was, now in zip(plain, held, strict=True))


@pytest.mark.parametrize("pair", [("s1", "s2"), ("2026-01", "2026-02"), ("a", "a/holdout"), ("", "x")])
def test_salts_draw_independently(pair):
    """Chi-square of a 10 by 10 table of both positions: 81 degrees of freedom, p above 1e-4."""
    first, second = (np.minimum(positions(salt, UNITS) * 10, 9).astype(int) for salt in pair)
    table = np.zeros((10, 10))
    np.add.at(table, (first, second), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-4
    assert stats.chisquare(table.sum(axis=0)).pvalue > 1e-4


def test_one_and_many_units_agree():
    one = assigner(experiment(shares(0.3, 0.3, 0.2)), holdout_share=0.2)
    singly = [one.assign(unit) for unit in FEW]
    assert [a and a.arm for a in singly] == one.assign_many(FEW)
    assert {HOLDOUT, None, "a0", "a1", "a2"} == {a and a.arm for a in singly}
    assert all(a.position == position("s1", a.unit) for a in singly if a is not None)
    assert {a.reason for a in singly if a is not None} == {"hash", "holdout"}


def test_ranges_begin_inclusive_and_end_exclusive():
    ranges = Ranges([[(0.0, 0.25), (0.75, 1.0)], [(0.25, 0.5)], [(0.6, 0.6)]])
    places = np.array([0.0, 0.2499, 0.25, 0.4999, 0.5, 0.6, 0.75, 0.9999])
    expected = [0, 0, 1, 1, NOBODY, NOBODY, 0, 0]
    assert ranges.owners_of(places).tolist() == expected
    assert [ranges.owner(place) for place in places] == expected


def test_kill_switch_stands_above_header_above_unit_above_holdout():
    config = experiment(shares(0.5, 0.5))
    forced = assigner(config, holdout_share=1.0, overrides={"qa": "a1"})
    assert (forced.assign("qa").arm, forced.assign("qa").reason) == ("a1", "override")
    assert (forced.assign("qa", "a0").arm, forced.assign("qa", "a0").reason) == ("a0", "override")
    assert forced.assign("someone").arm == HOLDOUT
    killed = assigner(config, holdout_share=1.0, overrides={"qa": "a1"}, killed=True)
    for unit, wanted in (("qa", None), ("qa", "a1"), ("someone", None), (None, None)):
        assignment = killed.assign(unit, wanted)
        assert (assignment.arm, assignment.reason) == ("a0", "kill_switch")


def test_without_a_unit_only_a_header_decides():
    one = assigner(experiment(shares(0.5, 0.5)), holdout_share=1.0)
    assert one.assign(None) is None
    asked = one.assign(None, "a1")
    assert (asked.arm, asked.unit, asked.position) == ("a1", "", -1.0)
