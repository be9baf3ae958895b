"""Bearer tokens: what is taken, what a file may hold, and what becomes of a changed file."""

import os

import pytest
from structlog.testing import capture_logs

from service.api.auth import MAX_FILE_BYTES, Tokens, check_token
from service.errors import TokensError, Unauthorized

FIRST, SECOND = "first-token-0123456789", "second+token/0123456789="


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# of the shop\n{FIRST}\n\n  {SECOND}  \r\n")
    return path


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (f"Bearer {FIRST}", True),
        (f"bearer {SECOND}", True),
        (f"  BEARER   {SECOND} ", True),
        (f"Basic {FIRST}", False),
        (FIRST, False),
        (f"Bearer {FIRST}x", False),
        (f"Bearer {FIRST[:-1]}", False),
        (f"Bearer {FIRST} {SECOND}", False),
        ("Bearer # of the shop", False),
        ("Bearer", False),
        ("", False),
        ("Bearer \xff\xfe", False),
    ],
)
def test_every_token_of_the_file_is_taken_and_nothing_else(file, sent, taken):
    assert Tokens.read(file).allows(sent.encode("latin-1")) is taken


def test_without_the_header_nothing_is_allowed(file):
    tokens = Tokens.read(file)
    assert len(tokens) == 2
    assert not tokens.allows(None)
    with pytest.raises(Unauthorized, match="this needs a header `Authorization: Bearer TOKEN`"):
        check_token(tokens, [(b"x-other", b"Bearer " + FIRST.encode())])
    check_token(tokens, [(b"x-other", b""), (b"authorization", b"Bearer " + FIRST.encode())])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no token; one a line is expected"),
        (b"# nothing\n\n", "holds no token"),
        (f"{FIRST}\nshort-secret\n".encode(), "line 2: a token of 12 characters, at least 16 are needed"),
        (b"\n\na token with spaces\n", "line 3: a token is printable ASCII without spaces"),
        ("tök€n-0123456789abc".encode(), "line 1: a token is printable ASCII"),
        (b"x" * (MAX_FILE_BYTES + 1), "has more than 1048576 bytes, the most that is read"),
    ],
)
def test_another_file_is_refused_by_name_and_line_without_its_text(tmp_path, content, message):
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(TokensError, match=message) as caught:
        Tokens.read(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "spaces\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TokensError, match=r"nowhere: cannot be read \(No such file or directory\)"):
        Tokens.read(tmp_path / "nowhere")


def test_a_changed_file_is_taken_up_within_a_second_and_not_looked_at_more_often(file):
    clock = Clock()
    tokens = Tokens.read(file, clock=clock)
    file.write_text("third-token-0123456789\n")
    clock.now += 0.9
    assert tokens.allows(f"Bearer {FIRST}".encode())
    clock.now += 0.2
    assert not tokens.allows(f"Bearer {FIRST}".encode())
    assert tokens.allows(b"Bearer third-token-0123456789")


def test_a_swap_by_rename_with_the_same_size_and_time_is_seen(file, tmp_path):
    clock = Clock()
    tokens = Tokens.read(file, clock=clock)
    before = file.stat()
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes().replace(b"first", b"FIRST"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)
    clock.now += 1.1
    assert tokens.allows(f"Bearer {FIRST.replace('first', 'FIRST')}".encode())


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "emptied"])
def test_the_last_good_tokens_stay_and_the_refusal_is_logged_without_a_token(file, gone):
    clock = Clock()
    tokens = Tokens.read(file, clock=clock)
    if gone:
        file.unlink()
    else:
        file.write_text("short\n")
    with capture_logs() as records:
        for _ in range(3):
            clock.now += 1.1
            assert tokens.allows(f"Bearer {FIRST}".encode())
    assert [record["event"] for record in records] == ["tokens_refused"]
    assert str(file) in records[0]["reason"]
    assert records[0]["num_tokens_kept"] == 2
    assert "short" not in str(records)
    file.write_text(FIRST)
    clock.now += 1.1
    assert not tokens.allows(f"Bearer {SECOND}".encode())
