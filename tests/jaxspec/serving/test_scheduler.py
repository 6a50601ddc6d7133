"""Who runs next."""

import pytest

from jaxspec.serving import Finish, QueueFull, Request, Scheduler, Ticket


def ticket(id, arrival=0.0, **settings):
    return Ticket(id, Request(prompt=[1], **settings), arrival)


def fill_all(scheduler, now=0.0, turns=20):
    """Turns in which every prompt is absorbed at once; who was admitted, in order."""
    admitted = []
    for _ in range(turns):
        plan = scheduler.plan(now)
        admitted += [each.id for each in plan.admit]
        if plan.fill is not None:
            scheduler.filled([plan.fill])
    return admitted


def test_first_come_first_served():
    scheduler = Scheduler(2)
    for i in range(5):
        scheduler.submit(ticket(i, arrival=i))
    assert fill_all(scheduler, 5.0) == [0, 1]
    scheduler.release(scheduler.rows[1])
    assert fill_all(scheduler, 5.0) == [2]


def test_a_lower_priority_takes_a_row_and_its_tenant_comes_back():
    scheduler = Scheduler(1)
    low, high = ticket(0, priority=5), ticket(1, priority=0)
    scheduler.submit(low)
    assert fill_all(scheduler) == [0]
    scheduler.submit(high)
    scheduler.plan(0.0)
    scheduler.filled([high])
    plan = scheduler.plan(0.0)
    assert plan.aside == ((low, 0),) and plan.stop == (0,) and plan.admit == (high,)
    assert fill_all(scheduler) == []  # an equal or worse one waits
    scheduler.release(high)
    assert fill_all(scheduler) == [0] and scheduler.num_preemptions == 1


def test_an_urgent_one_does_not_stand_behind_those_that_are_ready():
    scheduler = Scheduler(2)
    for i in range(8):
        scheduler.submit(ticket(i, priority=1))
    fill_all(scheduler)
    assert len(scheduler.ready) == 2 and len(scheduler.waiting) == 4
    urgent = ticket(8, arrival=1.0)
    scheduler.submit(urgent)
    assert fill_all(scheduler, 1.0) == [8] and urgent.row == 1


def test_nobody_waits_for_ever():
    """A stream of urgent requests, and one that is not."""
    scheduler = Scheduler(1, ageing=10.0)
    patient = ticket(0, arrival=0.0, priority=3)
    scheduler.submit(patient)
    scheduler.submit(ticket(1, arrival=0.0))
    for i in range(2, 60):
        scheduler.submit(ticket(i, arrival=float(i)))
        fill_all(scheduler, float(i), turns=3)
        if scheduler.rows[0] is patient:
            break
        scheduler.release(scheduler.rows[0])
    assert 25 <= i <= 45


def test_a_client_that_asks_for_much_leaves_room():
    scheduler = Scheduler(3)
    for i in range(4):
        scheduler.submit(ticket(i, client="a"))
    scheduler.submit(ticket(4, arrival=5.0, client="b"))
    scheduler.plan(5.0)
    assert fill_all(scheduler, 5.0) == [0, 4, 1]


def test_too_many_are_refused():
    scheduler = Scheduler(1, max_waiting=2)
    for i in range(2):
        scheduler.submit(ticket(i))
    with pytest.raises(QueueFull, match="2 requests wait"):
        scheduler.submit(ticket(2))


def test_rounds_only_where_nobody_waits_or_listens():
    scheduler = Scheduler(2, rounds=4)
    first = ticket(0)
    scheduler.submit(first)
    assert scheduler.plan(0.0).rounds == 1
    scheduler.filled([first])
    assert scheduler.plan(0.0).rounds == 4
    scheduler.listen(first, True)
    assert scheduler.plan(0.0).rounds == 1
    scheduler.listen(first, False)
    scheduler.submit(ticket(1))
    assert scheduler.plan(0.0).rounds == 1


def test_what_ends_is_taken_out_of_every_line():
    scheduler = Scheduler(1)
    tickets = [ticket(i, deadline=float(i)) for i in range(1, 5)]
    for each in tickets:
        scheduler.submit(each)
    fill_all(scheduler)
    assert scheduler.rows == [tickets[0]] and scheduler.ready == [tickets[1]]
    scheduler.abort(tickets[3])
    plan = scheduler.plan(3.5)
    assert {(t.id, why) for t, why in plan.end} == {
        (1, Finish.DEADLINE),
        (2, Finish.DEADLINE),
        (3, Finish.DEADLINE),
        (4, Finish.ABORT),
    }
    assert plan.stop == (0,) and scheduler.is_idle


@pytest.mark.parametrize(
    "settings", [{"num_rows": 0}, {"max_waiting": 0}, {"rounds": 0}, {"ageing": 0.0}]
)
def test_sizes_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        Scheduler(**({"num_rows": 1} | settings))
