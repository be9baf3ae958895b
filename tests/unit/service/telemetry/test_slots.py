"""Slots never move, go on after a crash, and are read by siblings."""

from array import array

import pytest

from service.telemetry.slots import BATCH, CHUNK_SLOTS, Claim, Hidden, SlotFiles, Slots


def all_records(source):
    found = []
    while records := source.records():
        found += records
    return found


@pytest.fixture(params=["memory", "files"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "worker-0"


def test_a_series_has_the_same_slots_every_time_and_they_never_move(path):
    slots = Slots(path)
    first = slots.claim("first", ("a",), 2)
    first[1] = 7.0
    for number in range(3 * CHUNK_SLOTS // 100):
        slots.claim("filler", (str(number),), 100)[0] = number
    first[0] = 5.0
    assert list(slots.claim("first", ("a",), 2)) == [5.0, 7.0]
    numbers = slots.numbers()
    claims = {(claim.name, claim.labels): claim for claim in all_records(slots)}
    for number in range(3 * CHUNK_SLOTS // 100):
        assert numbers[claims["filler", (str(number),)].start] == number


def test_claims_do_not_overlap(path):
    slots = Slots(path)
    for number in range(2000):
        slots.claim("x", (str(number),), 1 + number % 17)
    taken = [slot for claim in all_records(slots) for slot in range(claim.start, claim.start + claim.count)]
    assert len(taken) == len(set(taken)) == sum(1 + number % 17 for number in range(2000))


def test_another_number_of_slots_is_refused(path):
    slots = Slots(path)
    slots.claim("x", ("a",), 2)
    with pytest.raises(ValueError, match=r"x \('a',\): 3 slots, but 2 were claimed before"):
        slots.claim("x", ("a",), 3)
    with pytest.raises(ValueError, match=f"big: 8193 slots, at most {CHUNK_SLOTS} fit"):
        slots.claim("big", (), CHUNK_SLOTS + 1)


def test_a_sibling_reads_what_is_there_and_then_only_what_is_new(tmp_path):
    slots, sibling = Slots(tmp_path / "worker-0"), SlotFiles(tmp_path / "worker-0")
    slots.claim("x", ("ä\n",), 2)[1] = 2.5
    assert sibling.records() == [Claim("x", ("ä\n",), 0, 2)]
    assert sibling.records() == []
    slots.claim("y", (), 1)[0] = 4.0
    slots.hide("v1", hidden=True)
    slots.hide("v1", hidden=True)
    assert sibling.records() == [Claim("y", (), 2, 1), Hidden("v1", hidden=True)]
    assert sibling.numbers()[:3] == array("d", [0.0, 2.5, 4.0])


def test_a_sibling_leaves_a_line_that_is_still_being_written(tmp_path):
    slots, sibling = Slots(tmp_path / "worker-0"), SlotFiles(tmp_path / "worker-0")
    slots.claim("x", (), 1)
    keys = tmp_path / "worker-0.keys"
    whole = keys.read_bytes()
    keys.write_bytes(whole + whole[:9])
    assert [claim.name for claim in sibling.records()] == ["x"]
    assert sibling.records() == []


def test_a_successor_goes_on_with_the_files_and_cuts_a_torn_line(tmp_path):
    for life in range(5):
        slots = Slots(tmp_path / "worker-0")
        slots.claim("x", ("a",), 1)[0] += 1
        slots.claim(f"own-{life}", (), 3)[2] = life
        with (tmp_path / "worker-0.keys").open("ab") as file:
            file.write(b'{"type":"Cl')
    again = Slots(tmp_path / "worker-0")
    assert list(again.claim("x", ("a",), 1)) == [5.0]
    assert [again.claim(f"own-{life}", (), 3)[2] for life in range(5)] == [0, 1, 2, 3, 4]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["worker-0.keys", "worker-0.slots"]


def test_only_named_metrics_are_cleared(path):
    slots = Slots(path)
    gauge, counter = slots.claim("gauge", ("a",), 2), slots.claim("counter", (), 1)
    gauge[0], gauge[1], counter[0] = 1.0, 2.0, 3.0
    slots.clear(["gauge"])
    assert [*gauge, *counter] == [0.0, 0.0, 3.0]


def test_records_are_handed_out_a_few_at_a_time_and_none_twice(tmp_path):
    slots, sibling = Slots(tmp_path / "worker-0"), SlotFiles(tmp_path / "worker-0")
    names = [f"x{number}" for number in range(2 * BATCH + 50)]
    for name in names:
        slots.claim(name, ("label",) * 3, 1)
    for source in (slots, sibling):
        sizes, found = [], []
        while records := source.records():
            sizes.append(len(records))
            found += [claim.name for claim in records]
        assert sizes == [BATCH, BATCH, 50]
        assert found == names
