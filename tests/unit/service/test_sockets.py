"""Sockets that workers share, and closing one without resetting anybody."""

import socket

import pytest

from service.sockets import bind, ignore_new_connections


def test_two_sockets_share_a_port_and_a_stranger_does_not():
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        assert first.getsockname() == second.getsockname()
        with socket.socket() as stranger, pytest.raises(OSError, match="Address already in use"):
            stranger.bind(first.getsockname())


def test_after_the_filter_queued_connections_are_accepted_and_new_ones_are_not():
    with bind("127.0.0.1", 0) as listener, socket.socket() as early, socket.socket() as late:
        listener.listen()
        early.connect(listener.getsockname())
        ignore_new_connections(listener)
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.close()
