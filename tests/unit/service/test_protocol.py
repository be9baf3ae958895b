"""Held transports: what an iteration of the loop writes leaves in order, in one piece per connection."""

import asyncio

import pytest

from service.protocol import MAX_HELD_BYTES, HeldTransport, Outbox


class Wire(asyncio.Transport):
    """A transport that notes what it is told."""

    def __init__(self, told, name="a"):
        super().__init__()
        self.told = told
        self.name = name
        self.closing = False

    def write(self, data):
        self.told.append((self.name, bytes(data)))

    def close(self):
        self.closing = True
        self.told.append((self.name, "close"))

    def abort(self):
        self.closing = True
        self.told.append((self.name, "abort"))

    def write_eof(self):
        self.told.append((self.name, "eof"))

    def can_write_eof(self):
        return True

    def is_closing(self):
        return self.closing

    def get_extra_info(self, name, default=None):
        return {"peername": ("127.0.0.1", 5)}.get(name, default)

    def get_write_buffer_size(self):
        return 7

    def is_reading(self):
        return True

    def pause_reading(self):
        self.told.append((self.name, "pause"))

    def resume_reading(self):
        self.told.append((self.name, "resume"))

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    def set_write_buffer_limits(self, high=None, low=None):
        self.told.append((self.name, (high, low)))


def after(work):
    """What two connections' wires are told by the end of the iteration, and after it."""
    told = []

    async def main():
        outbox = Outbox()
        work(HeldTransport(Wire(told), outbox), HeldTransport(Wire(told, "b"), outbox))
        now = list(told)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return now, told[len(now) :]

    return asyncio.run(main())


def test_pieces_of_an_iteration_leave_together_and_in_order():
    def work(a, b):
        a.write(b"head ")
        b.writelines([b"x", b"y"])
        a.write(b"body")
        assert a.get_write_buffer_size() == 7 + 9

    assert after(work) == ([], [("a", b"head body"), ("b", b"xy")])


def test_a_second_iteration_writes_what_came_after_the_first():
    told = []

    async def main():
        held = HeldTransport(Wire(told), Outbox())
        for data in (b"1", b"2"):
            held.write(data)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(main())
    assert told == [("a", b"1"), ("a", b"2")]


@pytest.mark.parametrize(("end", "told"), [("close", "close"), ("write_eof", "eof")])
def test_ending_writes_what_is_held_first(end, told):
    def work(a, b):
        a.write(b"bye")
        getattr(a, end)()

    assert after(work) == ([("a", b"bye"), ("a", told)], [])


def test_aborting_and_a_wire_that_is_closing_drop_what_is_held():
    def work(a, b):
        a.write(b"lost")
        a.abort()
        b.write(b"lost")
        b._transport.close()

    assert after(work) == ([("a", "abort"), ("b", "close")], [])


def test_much_at_once_is_written_at_once():
    def work(a, b):
        a.write(b"x" * MAX_HELD_BYTES)
        a.write(b"y")

    now, later = after(work)
    assert now == [("a", b"x" * MAX_HELD_BYTES + b"y")]
    assert later == []


def test_everything_else_is_the_wires():
    def work(a, b):
        a.pause_reading()
        a.resume_reading()
        a.set_write_buffer_limits(9, 3)
        a.set_protocol("p")
        assert (a.get_protocol(), a.is_reading(), a.can_write_eof(), a.is_closing()) == (
            "p",
            True,
            True,
            False,
        )
        assert a.get_extra_info("peername") == ("127.0.0.1", 5)

    assert after(work) == ([("a", "pause"), ("a", "resume"), ("a", (9, 3))], [])
