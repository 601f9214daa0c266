"""Console streams that take whatever is written to them; and texts that are cut."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
import time

import pytest

from torchbeast.core import console as consoles
from torchbeast.core.console import LEFT_OUT, LIMIT, Stream, console, cut


@pytest.fixture
def pipe():
    """A reader's descriptor, and a stream to write to."""
    reader, writer = os.pipe()
    stream = open(writer, "w")  # noqa: SIM115
    yield reader, stream
    for end in (lambda: os.close(reader), stream.close):
        with contextlib.suppress(OSError):
            end()


def test_a_text_is_cut_in_its_middle():
    assert cut("a" * LIMIT) == "a" * LIMIT
    short = cut("a" * 50_000_000 + "b" * 100)
    assert len(short) < LIMIT + 100 and short.startswith("aaa") and short.endswith("bbb")
    assert f"{50_000_100 - LIMIT:,} characters are left out" in short


def test_what_is_written_arrives_in_order(pipe):
    reader, stream = pipe
    stream.write("before ")  # and not flushed
    Stream(stream, waits=False).write("after\n")
    assert os.read(reader, 100) == b"before after\n"


def test_a_reader_who_takes_nothing_is_not_waited_for_and_told_of_what_he_missed(pipe, monkeypatch):
    monkeypatch.setattr(consoles, "PATIENCE_SECONDS", 0.2)
    reader, stream = pipe
    mine = Stream(stream, waits=False)
    began = time.monotonic()
    for _ in range(1000):
        assert mine.write("x" * 1000) == 1000
    assert time.monotonic() - began < 2
    assert not fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK, "others have the same descriptor"
    while len(os.read(reader, 1 << 20)) == 1 << 16:
        pass
    mine.write("here again\n")
    assert os.read(reader, 1000).decode() == LEFT_OUT + "here again\n"
    mine.release()


def test_a_reader_of_results_is_waited_for(pipe):
    reader, stream = pipe
    mine = Stream(stream, waits=True)
    child = os.fork()
    if child == 0:
        stream.close()
        time.sleep(0.5)
        size = 0
        while part := os.read(reader, 1 << 16):
            size += len(part)
        os._exit(0 if size == 1_000_000 else 1)
    mine.write("x" * 1_000_000)
    stream.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and mine.error is None


def test_a_reader_who_has_gone_is_no_error_and_a_full_disk_is(pipe):
    reader, stream = pipe
    mine = Stream(stream, waits=True)
    os.close(reader)
    assert mine.write("lost\n") == 5 and mine.error is None
    with open("/dev/full", "w") as full:
        mine = Stream(full, waits=True)
        mine.write("lost\n")
        assert mine.error.strerror == "No space left on device"


@pytest.mark.parametrize("stream", [None, io.StringIO(), io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_streams_that_are_no_files(stream):
    mine = Stream(stream, waits=False)
    mine.write("t\n")
    mine.flush()
    assert not mine.isatty() and mine.writable() and mine.encoding
    assert stream is None or isinstance(stream, io.TextIOWrapper) or stream.getvalue() == "t\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_the_console_cannot_spell_is_spelt_out(tmp_path, encoding):
    with open(tmp_path / "file", "w", encoding=encoding) as file:
        Stream(file, waits=False).write("t\u2217 \udce9\n")
    assert (tmp_path / "file").read_bytes() in (rb"t\u2217 \udce9" + b"\n", "t\u2217 ".encode() + rb"\udce9" + b"\n")


def test_a_stream_that_was_closed_takes_everything(tmp_path):
    with open(tmp_path / "file", "w") as file:
        mine = Stream(file, waits=False)
    mine.write("lost")
    mine.flush()


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), console() as (out, errors):
        assert (sys.stdout, sys.stderr) == (out, errors)
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before
