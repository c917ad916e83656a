from __future__ import annotations

import threading

import pytest

from stillhouse.tasks.front_models import batch_queue
from stillhouse.tasks.front_models.batch_queue import BatchQueue, QueueFull, Totals


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(batch_queue, "time", clock)
    return clock


def work(queue, clock, rows, seconds):
    """Take a batch of `rows`, which takes `seconds`."""
    queue.add("work", rows)
    queue.take()
    begin = clock.now
    clock.now += seconds
    queue.done(1, rows, begin)


def queue_of(**changes) -> BatchQueue[str]:
    return BatchQueue(**{"max_items": 100, "max_wait": 0.0, "batch_rows": 4, **changes})


def test_batches_are_filled_in_order_and_not_beyond():
    queue = queue_of()
    for item, rows in (("a", 1), ("b", 2), ("c", 2), ("d", 9), ("e", 1), ("f", 3)):
        queue.add(item, rows)
    assert [queue.take()[0] for _ in range(4)] == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def test_one_item_more_than_may_wait_is_refused():
    queue = queue_of(max_items=2)
    queue.add("a", 1)
    queue.add("b", 1)
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        queue.add("c", 1)
    queue.take()
    queue.add("c", 1)  # room again


def test_an_item_that_would_wait_too_long_is_refused_at_once(clock):
    queue = queue_of(max_wait=1.0)
    work(queue, clock, rows=4, seconds=2.0)  # half a second for each row
    queue.add("a", 2)  # nothing before it
    queue.add("b", 1)  # a second to wait: just allowed
    with pytest.raises(QueueFull, match="1500 ms until its turn, and 1000 ms"):
        queue.add("c", 1)
    assert queue.take() == (["a", "b"], [])
    # What is at work counts for half: it is under way already.
    queue.add("c", 1)
    with pytest.raises(QueueFull, match="1250 ms"):
        queue.add("d", 1)


def test_the_estimate_follows_the_present_pace(clock):
    queue = queue_of(max_wait=1.0)
    for _ in range(30):
        work(queue, clock, rows=1, seconds=3.0)
    for _ in range(50):
        work(queue, clock, rows=1, seconds=0.001)
    for _ in range(50):
        queue.add("many", 1)


def test_two_at_work_are_twice_as_fast(clock):
    queue = queue_of(max_wait=1.0, batch_rows=1)
    for _ in range(2):
        queue.add("a", 1)
        queue.take()
    begin = clock.now
    for _ in range(60):  # each takes a second, and every half second one is done
        clock.now += 0.5
        queue.done(1, 1, max(begin, clock.now - 1.0))
        queue.add("a", 1)
        queue.take()
    queue.add("b", 1)  # half of two at work: half a second
    queue.add("c", 1)  # and one that waits: a second
    with pytest.raises(QueueFull, match="1500 ms"):
        queue.add("d", 1)


def test_what_waited_too_long_is_handed_out_apart(clock):
    queue = queue_of(max_wait=1.0)
    queue.add("late", 1)
    clock.now += 1.5
    queue.add("a", 4)
    assert queue.take() == (["a"], ["late"])


def test_no_limit_of_time(clock):
    queue = queue_of()
    work(queue, clock, rows=1, seconds=1000.0)
    for _ in range(10):
        queue.add("more", 1)


def test_takers_wait_and_all_end_when_it_is_closed():
    queue = queue_of(batch_rows=1, max_items=1000)
    taken = []

    def take_all() -> None:
        while any(found := queue.take()):
            taken.extend(found[0])

    workers = [threading.Thread(target=take_all, daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    for number in range(200):
        queue.add(str(number), 1)
    queue.close()
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()
    assert sorted(map(int, taken)) == list(range(200))
    with pytest.raises(QueueFull, match="unloaded"):
        queue.add("too late", 1)


def test_totals_say_what_went_through(clock):
    queue = queue_of(max_wait=2.0, max_items=3, batch_rows=2)
    for item in ("a", "b", "c"):
        queue.add(item, 1)
    with pytest.raises(QueueFull):
        queue.add("d", 1)
    clock.now += 1.5
    assert queue.take() == (["a", "b"], [])  # 1.5 s each
    begin = clock.now
    clock.now += 0.25
    queue.done(2, 2, begin)  # 0.25 s each
    clock.now += 1.0
    assert queue.take() == ([], ["c"])  # 2.75 s, which is too long
    assert queue.totals() == Totals(items=2, refused=2, queue_seconds=5.75, compute_seconds=0.5, waiting=0)
    queue.add("e", 1)
    assert queue.totals().waiting == 1
