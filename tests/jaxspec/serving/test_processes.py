"""An engine on a mesh, and in several processes, keeps the promises of any engine."""

import threading

import jax
import numpy as np
import pytest

import engine_ranks
import engines
import several
import traffic
from jaxspec import serving, sharding


@pytest.mark.parametrize("case", engine_ranks.CASES)
def test_texts_on_a_mesh_are_those_of_lone_runs(case):
    with sharding.mesh(data=2, tensor=4) as mesh:
        params, options = engine_ranks.setup(case, mesh)
    engine = serving.Engine(params, **options, policy=traffic.Whims())
    with jax.transfer_guard("disallow"):
        differ, tickets = engine_ranks.serve(engine, 16)
    assert not differ and len(tickets) > 16
    assert engine.counts.compilations == 0
    state, value = engine._pool._state, engine.programs.value
    for each in (state, value):
        where = options["layout"].of(each)
        same = jax.tree.map(
            lambda leaf, s: leaf.sharding.is_equivalent_to(s, len(leaf.shape)),
            each,
            where,
        )
        assert all(jax.tree.leaves(same))
    assert not state.lengths.sharding.is_fully_replicated


def test_a_text_leaves_a_mesh_and_goes_on_without_one():
    """Its value is the same pytree, whatever devices it was on."""
    with sharding.mesh(data=2, tensor=4) as mesh:
        params, options = engine_ranks.setup("look-up", mesh)
    engine = serving.Engine(params, **options)
    plain = jax.tree.map(np.asarray, params)
    other = serving.Engine(plain, **options | {"layout": None, "rows": 1})
    ticket = engine.submit(serving.Request([3, 1, 4, 1, 5], 24))
    while len(ticket.tokens) < 5:
        engine.turn()
    resumed = other.resume(engine.take(ticket))
    engine.run()
    other.run()
    assert resumed.tokens == ticket.tokens  # a near tie may part; here is none


def test_rows_that_a_mesh_cannot_cut_are_refused():
    with sharding.mesh(data=2, tensor=4) as mesh:
        params, options = engine_ranks.setup("look-up", mesh)
    with pytest.raises(ValueError, match="3 rows cannot be cut"):
        serving.Engine(params, **options | {"rows": (2, 3)})


def test_two_processes_serve_as_one(tmp_path):
    """They are led by one, refuse what it refuses, and end with it."""
    link = several.free_address()
    outputs = several.run(engine_ranks.__file__, link, tmp_path)
    assert "texts as alone" in outputs[0] and "followed" in outputs[1]


# --- The link alone, between threads ---


def linked(leader, follower):
    """Runs a function at either end of a link."""
    address = several.free_address()

    def run():
        follower(serving.Link(address, "secret", index=1, count=2))

    found = []

    def caught():
        try:
            run()
        except serving.Parted as error:
            found.append(str(error))

    thread = threading.Thread(target=caught)
    thread.start()
    try:
        leader(serving.Link(address, "secret", index=0, count=2))
    finally:
        thread.join(60)
    return found


def follow(link):
    params, records = engines.machinery("look-up")
    options = {"rows": 2, "max_length": traffic.MAX_LENGTH, "chunk_size": 4}
    serving.follow(link, params, **records, **options)


def lead(link):
    params, records = engines.machinery("look-up")
    options = {"rows": 2, "max_length": traffic.MAX_LENGTH, "chunk_size": 4}
    return serving.Leader(params, link=link, **records, **options)


def test_whoever_writes_something_else_says_so():
    def leader(link):
        engine = lead(link)
        engine.submit(serving.Request([1], 4))
        engine.turn()
        engine.counts.tokens += 1
        engine.turn()

    (error,) = linked(leader, follow)
    assert "[1, 0] tokens and texts, not [0, 0]" in error


def test_a_fault_of_process_0_ends_all():
    def leader(link):
        engine = lead(link)
        engine.policy.budgets = lambda tickets: 1 / 0
        engine.submit(serving.Request([1], 4))
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            engine.run()

    (error,) = linked(leader, follow)
    assert "Process 0 is gone" in error


@pytest.mark.parametrize("address", ["localhost", ":1", "host:port"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        serving.Link(address, "secret", index=0, count=1)
