"""Segments of lines: what is on disk after every kind of end."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from service.telemetry.segments import CLOSED, OPEN, SegmentFiles, check_folder


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def segments(folder, **options):
    return SegmentFiles(folder, "feedback", **{"max_bytes": 1000, "max_age_s": 1000.0, **options})


def only(folder):
    ((name, content),) = files_in(folder).items()
    return name, content


def test_lines_are_there_before_the_segment_is_closed_and_keep_their_name_after(tmp_path):
    sink = segments(tmp_path / "made")
    sink.append([b"a\n", b"b\n"])
    sink.append([b"c\n"])
    name, content = only(tmp_path / "made")
    assert (name.endswith(OPEN), content) == (True, b"a\nb\nc\n")
    sink.close()
    assert only(tmp_path / "made") == (name.removesuffix(OPEN) + CLOSED, b"a\nb\nc\n")
    sink.close()


def test_segments_rotate_by_size(tmp_path):
    sink = segments(tmp_path, max_bytes=4)
    for letter in (b"a", b"b", b"c"):
        sink.append([letter + b"\n"])
    contents = files_in(tmp_path)
    assert list(contents.values()) == [b"a\nb\n", b"c\n"]
    assert [name.endswith(OPEN) for name in contents] == [False, True]


def test_segments_rotate_by_age_even_without_lines(tmp_path):
    now = [0.0]
    sink = segments(tmp_path, max_age_s=10.0, clock=lambda: now[0])
    sink.append([b"a\n"])
    now[0] = 9.9
    sink.append([])
    assert only(tmp_path)[0].endswith(OPEN)
    now[0] = 10.0
    sink.append([])
    assert only(tmp_path)[0].endswith(CLOSED)
    sink.append([b"b\n"])
    assert len(files_in(tmp_path)) == 2


@pytest.mark.parametrize(
    ("left", "kept"), [(b"a\nb\n{torn", b"a\nb\n"), (b"a\n", b"a\n"), (b"x" * 200_000, None), (b"", None)]
)
def test_a_dead_writers_segment_is_cut_to_whole_lines(tmp_path, left, kept):
    (tmp_path / f"feedback-1{OPEN}").write_bytes(left)
    found = segments(tmp_path).recover()
    assert (found.segments, found.torn_bytes) == (1, len(left) - len(kept or b""))
    assert files_in(tmp_path) == ({} if kept is None else {f"feedback-1{CLOSED}": kept})


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path):
    (tmp_path / f"feedback-1{OPEN}").write_bytes(b"a\n" + b"x" * 200_000)
    assert segments(tmp_path).recover().torn_bytes == 200_000
    assert only(tmp_path)[1] == b"a\n"


def test_a_living_writers_segment_and_other_kinds_are_left_alone(tmp_path):
    sink = segments(tmp_path)
    sink.append([b"a\n"])
    (tmp_path / f"exposures-1{OPEN}").write_bytes(b"b\n")
    before = files_in(tmp_path)
    assert segments(tmp_path).recover().segments == 0
    assert files_in(tmp_path) == before
    sink.append([b"c\n"])
    sink.close()


def test_a_full_disk_leaves_no_half_line_and_the_next_append_starts_anew(tmp_path, monkeypatch):
    sink = segments(tmp_path)
    sink.append([b"a\n"])
    write = os.write

    def full(fd, data):
        if len(data) > 3:
            return write(fd, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.telemetry.segments.os.write", full)
    with pytest.raises(OSError, match="No space left"):
        sink.append([b"long line\n"])
    assert only(tmp_path)[0].endswith(CLOSED)
    assert only(tmp_path)[1] == b"a\n"
    monkeypatch.undo()
    sink.append([b"b\n"])
    sink.close()
    assert list(files_in(tmp_path).values()) == [b"a\n", b"b\n"]


def test_a_real_limit_on_file_size_is_an_error_and_nothing_half_written(tmp_path):
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from service.telemetry.segments import SegmentFiles\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "sink = SegmentFiles(Path(sys.argv[1]), 'feedback', max_bytes=1000, max_age_s=1000)\n"
        "sink.append([b'a' * 59 + b'\\n'])\n"
        "try:\n    sink.append([b'b' * 59 + b'\\n'])\nexcept OSError as error:\n    print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == errno.EFBIG
    assert only(tmp_path)[1] == b"a" * 59 + b"\n"


def test_a_failed_sync_ends_the_segment(tmp_path, monkeypatch):
    sink = segments(tmp_path)

    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("service.telemetry.segments.os.fdatasync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sink.append([b"a\n"])
    assert files_in(tmp_path) == {}


def test_a_segment_that_cannot_be_opened_leaves_nothing(tmp_path, monkeypatch):
    sink = segments(tmp_path)

    def taken(fd, how):
        raise BlockingIOError(errno.EAGAIN, "locked")

    monkeypatch.setattr(fcntl, "flock", taken)
    with pytest.raises(BlockingIOError):
        sink.append([b"a\n"])
    assert files_in(tmp_path) == {}


def test_folders_are_tried_before_they_are_needed(tmp_path):
    check_folder(tmp_path / "new" / "folder")
    assert files_in(tmp_path / "new" / "folder") == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        check_folder(tmp_path / "file")
