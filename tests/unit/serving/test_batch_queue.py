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


def test_a_list_in_large_requests_is_not_refused_because_of_itself(clock):
    queue = queue_of(max_wait=0.5)
    work(queue, clock, rows=64, seconds=0.64)  # 10 ms for each row
    for number in range(6):
        queue.add(f"large {number}", 64)  # the last one waits for 5 times as long as it takes, 3.2 s
    with pytest.raises(QueueFull, match="3840 ms until its turn, and 500 ms"):
        queue.add("small", 1)
    clock.now += 3.2
    assert queue.take() == (["large 0"], [])
    clock.now += 2.2  # more than 0.5 s and eight times the 0.6 s of the 60 rows beyond a batch
    assert queue.take() == ([], [f"large {number}" for number in range(1, 6)])


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


def test_what_is_urgent_comes_first_and_is_not_refused(clock):
    queue = queue_of(max_items=1, max_wait=1.0, batch_rows=2)
    work(queue, clock, rows=1, seconds=3.0)
    queue.add("a", 1)
    queue.add("probe", 1, urgent=True)
    with pytest.raises(QueueFull):
        queue.add("b", 1)
    clock.now += 0.5
    assert queue.take() == (["probe", "a"], [])
    queue.add("probe", 1, urgent=True)
    clock.now += 100.0
    assert queue.take() == (["probe"], [])  # nor is it ever too late
    queue.close()
    with pytest.raises(QueueFull, match="unloaded"):
        queue.add("probe", 1, urgent=True)


def test_probes_that_nobody_takes_do_not_pile_up():
    queue = queue_of(max_items=2)
    queue.add("a", 1)
    queue.add("b", 1)
    for _ in range(8):
        queue.add("probe", 1, urgent=True)
    with pytest.raises(QueueFull, match="10 requests are waiting"):
        queue.add("probe", 1, urgent=True)
    assert queue.take()[0] == ["probe"] * 4


def pass_by(queue, clock, seconds=0.25) -> bool:
    """Whether an item may pass, which then takes its time."""
    if may := queue.begin(1):
        begin = clock.now
        clock.now += seconds
        queue.done(1, 1, begin)
    return may


def test_a_lone_callers_items_pass_and_now_and_then_one_does_not(clock):
    queue = queue_of()
    for _ in range(4):
        assert [pass_by(queue, clock) for _ in range(5)] == [True, True, True, False, False]
        work(queue, clock, rows=1, seconds=0.25)
    assert queue.totals() == Totals(items=16, refused=0, queue_seconds=0, compute_seconds=4.0, waiting=0)


def test_nobody_passes_who_is_one_of_several(clock):
    queue = queue_of(max_wait=1.0)
    assert queue.begin(1)
    assert not queue.begin(1)  # something is at work
    queue.done(1, 1, clock.now)
    queue.add("a", 1)
    assert not queue.begin(1)  # "a" waits
    queue.take()
    queue.add("b", 1)  # while "a" is at work
    queue.take()
    queue.done(2, 2, clock.now)
    clock.now += 0.9
    assert not queue.begin(1)
    clock.now += 0.2
    assert queue.begin(1)


def test_who_is_refused_was_one_of_several_too(clock):
    queue = queue_of(max_items=1)
    queue.add("a", 1)
    clock.now += 5.0
    with pytest.raises(QueueFull):
        queue.add("b", 1)
    queue.take()
    queue.done(1, 1, clock.now)
    assert not queue.begin(1)


def test_a_probe_is_no_caller(clock):
    queue = queue_of()
    queue.add("a", 1)
    queue.add("probe", 1, urgent=True)
    queue.take()
    queue.done(2, 2, clock.now)
    assert queue.begin(1)


def test_what_passes_counts_as_at_work(clock):
    queue = queue_of(max_wait=1.0)
    work(queue, clock, rows=1, seconds=3.0)
    assert queue.begin(1)
    with pytest.raises(QueueFull, match="1500 ms until its turn"):
        queue.add("a", 1)


def test_a_closed_queue_is_not_passed():
    queue = queue_of()
    queue.close()
    assert not queue.begin(1)


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
