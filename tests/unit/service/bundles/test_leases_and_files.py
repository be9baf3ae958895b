"""Leases, states of files, and giving memory back."""

import pytest

from service.bundles import memory
from service.bundles.leases import Leases
from service.bundles.reload import Reload, Result, file_states


def test_what_waits_is_called_once_at_the_end_of_the_last_lease():
    leases, calls = Leases(), []
    with leases:
        leases.when_free(lambda: calls.append("first"))
        leases.when_free(lambda: calls.append("second"))
        with leases:
            assert leases.count == 2
        assert calls == []
    assert (calls, leases.count) == (["second"], 0)
    with leases:
        pass
    assert calls == ["second"]
    leases.when_free(lambda: calls.append("now"))
    assert calls == ["second", "now"]


def test_a_request_that_fails_gives_its_lease_back():
    leases = Leases()
    with pytest.raises(ZeroDivisionError), leases:
        raise ZeroDivisionError
    assert leases.count == 0


def test_a_files_state_changes_with_its_content_by_rename_and_when_it_goes(tmp_path):
    file, other = tmp_path / "a", tmp_path / "b"
    assert file_states((file,)) == (None,)
    file.write_text("one")
    first = file_states((file, other))
    assert first == file_states((file, other))
    other.write_text("two")
    other.replace(file)
    assert file_states((file, other)) != first
    file.unlink()
    assert file_states((file, other)) == (None, None)


def test_a_reload_is_shown_as_plain_values():
    done = Reload(Result.REFUSED, None, "why", 0.5, 7)
    assert done.shown() == {
        "result": "refused",
        "bundle": None,
        "reason": "why",
        "took_s": 0.5,
        "ended_ms": 7,
    }


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_a_library_without_the_call_gives_nothing_back(monkeypatch, error):
    def missing(name):
        raise error

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory._trim.cache_clear()
    try:
        assert memory.give_back_memory() is False
    finally:
        memory._trim.cache_clear()


def test_freed_memory_is_given_back_where_the_library_can():
    kept = [bytes(1000) for _ in range(20_000)]
    del kept[::2]
    assert memory.give_back_memory() in (True, False)
