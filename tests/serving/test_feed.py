"""Streams: turns chunk by chunk, as far as their readers follow, and their ends."""

import threading
import time

import pytest

import jvdm
from jvdm.serving import feed as feeds
from jvdm.serving.jobs import Closing, Jobs
from jvdm.serving.limits import Limits
from tests.serving.conftest import PROMPT, SMALL


@pytest.fixture
def jobs(pipe, tmp_path):
    jobs = Jobs(pipe, tmp_path, Limits(max_streams=1))
    yield jobs
    assert jobs.close()


class Source:
    """A stream without an end; it says what it made and whether it was closed."""

    def __init__(self):
        self.made, self.closed, self.threads = 0, threading.Event(), set()

    def __iter__(self):
        try:
            while True:
                self.threads.add(threading.current_thread().name)
                yield self.made
                self.made += 1
        finally:
            self.closed.set()


def until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_stream_is_read_to_its_end(jobs):
    assert list(jobs.stream("a", iter(range(20)))) == list(range(20))
    until(lambda: jobs.ended == {"done": 1})


def test_a_stream_goes_no_further_than_its_reader_and_others_have_the_device(jobs):
    source = Source()
    feed = jobs.stream("a", iter(source))
    chunks = iter(feed)
    assert next(chunks) == 0
    assert jobs.wait(jobs.submit("a", {"prompt": PROMPT, **SMALL}), 60.0).state == "done"
    assert feed.made <= 1 + feeds.CHUNKS_AHEAD
    assert [next(chunks) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert source.threads == {"jvdm-device"}
    chunks.close()
    assert source.closed.wait(10)


def test_cancelling_frees_the_device_for_the_next(jobs):
    first, second = Source(), Source()
    feed, other = jobs.stream("a", iter(first)), jobs.stream("b", iter(second))
    until(lambda: feed.made == feeds.CHUNKS_AHEAD)
    assert other.made == 0 and jobs.counts()["streams"] == 1
    feed.cancel()
    assert next(iter(other)) == 0 and first.closed.is_set()
    assert list(feed) in ([0, 1], [0, 1, 2])


def test_one_that_waits_is_cancelled_too(jobs):
    held, waits = Source(), Source()
    feed = jobs.stream("a", iter(held))
    until(lambda: feed.made == feeds.CHUNKS_AHEAD)
    other = jobs.stream("b", iter(waits))
    other.cancel()
    assert list(other) == [] and waits.made == 0
    feed.cancel()


def test_an_error_reaches_the_reader(jobs):
    def fails():
        yield 1
        raise jvdm.NumericsError("not finite")

    feed = jobs.stream("a", fails())
    found = []
    with pytest.raises(jvdm.NumericsError, match="not finite"):
        for chunk in feed:
            found.append(chunk)
    assert found == [1]
    until(lambda: jobs.ended == {"failed": 1})


def test_nobody_reads_for_ever(jobs, monkeypatch):
    source = Source()
    feed = jobs.stream("a", iter(source))
    until(lambda: feed.made == feeds.CHUNKS_AHEAD)
    monkeypatch.setattr(feeds, "PATIENCE_S", 0.05)
    assert source.closed.wait(10)
    with pytest.raises(jvdm.ConfigError, match="nobody read the stream"):
        list(feed)


def test_a_stop_ends_streams_also_those_that_wait(pipe, tmp_path):
    jobs = Jobs(pipe, tmp_path, Limits(max_streams=1))
    source = Source()
    feed, other = jobs.stream("a", iter(source)), jobs.stream("b", iter(Source()))
    until(lambda: feed.made == feeds.CHUNKS_AHEAD)
    assert jobs.close() and source.closed.is_set()
    for each in (feed, other):
        with pytest.raises(Closing, match="the stream ends here"):
            list(each)
    with pytest.raises(Closing):
        jobs.stream("a", iter(()))
