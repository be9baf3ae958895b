"""Bearer tokens from a file: who may call what is not open to everyone.

Reads a text file with one token a line; blank lines and lines that begin with `#` say nothing. Several tokens
hold at once, so that they can be changed without a gap. The file is looked at again at most once a second;
what it holds then counts as a whole or, where it is refused, not at all: the last good tokens stay.
Invariant: no token is ever kept in clear, logged, or part of an error; comparing takes the same time
whichever token was sent.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from service.errors import TokensError, Unauthorized
from service.telemetry.log import get_logger

MIN_TOKEN_LENGTH = 16
MAX_FILE_BYTES = 1 << 20
LOOK_EVERY_S = 1.0
SCHEME = b"bearer"

Digests = tuple[bytes, ...]
State = tuple[int, int, int]

log = get_logger(__name__)


class Tokens:
    """The tokens of one file; make it with `Tokens.read`.

    Args:
        path: The file.
        digests: SHA-256 of each token.
        state: Of the file when it was read, as `_state` says.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        path: Path,
        digests: Digests,
        state: State | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._digests = digests
        self._state = state
        self._clock = clock
        self._looked_s = clock()

    @classmethod
    def read(cls, path: Path, *, clock: Callable[[], float] = time.monotonic) -> Tokens:
        """Read a file of tokens.

        Raises:
            TokensError: It cannot be read, holds no token, or holds a line that is no token.
        """
        return cls(path, *_read(path), clock=clock)

    def __len__(self) -> int:
        return len(self._digests)

    def allows(self, authorization: bytes | None) -> bool:
        """Whether a header's value names one of the tokens under the scheme `Bearer`.

        Args:
            authorization: Value of the `authorization` header; None without one.
        """
        if authorization is None:
            return False
        self._look()
        scheme, _, token = authorization.strip().partition(b" ")
        sent = hashlib.sha256(token.strip()).digest()
        found = False
        for digest in self._digests:  # all of them: where the match is must not show in the time it takes
            found |= hmac.compare_digest(sent, digest)
        return found and scheme.lower() == SCHEME

    def _look(self) -> None:
        """Take up a changed file; one that is refused is reported once and changes nothing."""
        now = self._clock()
        if now - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._digests, self._state = _read(self._path)
        except TokensError as error:
            self._refused(str(error))
        else:
            log.info("tokens_reloaded", file=str(self._path), num_tokens=len(self._digests))

    def _refused(self, reason: str) -> None:
        log.error("tokens_refused", reason=reason, num_tokens_kept=len(self._digests))


def check_token(tokens: Tokens, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Let a request pass that names a token.

    Args:
        tokens: That are taken.
        headers: Of the request, names in lower case.

    Raises:
        Unauthorized: It names none, or one that is not taken; the text does not say which.
    """
    if not tokens.allows(authorization_of(headers)):
        raise Unauthorized("this needs a header `Authorization: Bearer TOKEN` with a token taken here")


def authorization_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The first `authorization` header; None without one."""
    return next((value for name, value in headers if name == b"authorization"), None)


def _state(path: Path) -> State | None:
    """What changes with the file: modification time, size, and inode for files swapped by a rename.

    None where there is no file to look at.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> tuple[Digests, State | None]:
    state = _state(path)  # before the content: what changes meanwhile is then read again
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokensError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise TokensError(f"{path}: has more than {MAX_FILE_BYTES} bytes, the most that is read")
    return _digests(path, content), state


def _digests(path: Path, content: bytes) -> Digests:
    digests = []
    for number, line in enumerate(content.splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if len(token) < MIN_TOKEN_LENGTH:
            raise TokensError(
                f"{path}, line {number}: a token of {len(token)} characters, at least "
                f"{MIN_TOKEN_LENGTH} are needed"
            )
        if any(not 0x21 <= byte <= 0x7E for byte in token):
            raise TokensError(f"{path}, line {number}: a token is printable ASCII without spaces")
        digests.append(hashlib.sha256(token).digest())
    if not digests:
        raise TokensError(f"{path}: holds no token; one a line is expected")
    return tuple(digests)


__all__ = ["Tokens", "authorization_of", "check_token"]
