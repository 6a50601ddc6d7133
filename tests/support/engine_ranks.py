"""An engine on a mesh, and a run of it as one of several processes.

As a script, `python engine_ranks.py ADDRESS PROCESSES INDEX LINK FOLDER` is one of the
processes: process 0 serves traffic, and compares each text with that of a lone run.
"""

import dataclasses
import pathlib
import sys

import jax

import meshes
import traffic
from jaxspec import serving, sharding

CASES = {  # model, drafter, rollback, stacked layers
    "look-up": ("groups", "ngram", "replay", False),
    "draft model": ("one-group", "model", "lazy", True),
}
OPTIONS = {"rows": 4, "max_length": traffic.MAX_LENGTH, "chunk_size": traffic.CHUNK}


def setup(case, mesh):
    """The params on a mesh, and what an engine is made of."""
    made = meshes.Setup(*CASES[case])
    records = {"target": made.target, "drafter": made.drafter}
    records["layout"] = sharding.Layout(mesh, made.config, made.draft_config)
    return made.shard(mesh), OPTIONS | records


def requests(seed, count, vocab_size):
    """Requests of all sorts, whose tokens a model knows."""
    for each in traffic.requests(seed, count):
        prompt = [token % vocab_size for token in each.prompt]
        yield dataclasses.replace(each, prompt=prompt)


def serve(engine, count, seed=3):
    """Serves traffic; the tickets whose texts differ from those of lone runs, and all."""
    asked = requests(seed, count, engine.machinery.target.vocab_size)
    tickets = traffic.serve(engine, asked, seed, forks=0.2)
    differ = []
    for ticket in tickets:
        expected = traffic.alone(engine, ticket.request)
        if ticket.finish is serving.Finish.ABORT:
            expected = expected[: len(ticket.tokens)]
        differ += [ticket] if ticket.tokens != expected else []
    return differ, tickets


def main(address, processes, index, link, folder):
    """One of several processes."""
    jax.distributed.initialize(address, int(processes), int(index))
    link = serving.Link(link, "a secret")
    with sharding.mesh(data=2, tensor=4) as mesh:
        params, options = setup("draft model", mesh)
    if link.index > 0:
        serving.follow(link, params, **options)
        print(f"process {index}: followed")
        return
    engine = serving.Leader(params, link=link, policy=traffic.Whims(), **options)
    for bad in ({"prompt": []}, {"prompt": [1], "temperature": -1.0}):
        try:
            engine.submit(serving.Request(**bad))
        except ValueError:
            continue
        raise AssertionError("a bad request was taken")
    differ, tickets = serve(engine, 16)
    request = serving.Request([3, 1, 4], 24, temperature=1.0, seed=7)
    ticket = engine.submit(request)
    for _ in engine.stream(ticket):
        if len(ticket.tokens) > 4:
            break
    path = pathlib.Path(folder, "text.safetensors")
    serving.save(path, engine.suspend(ticket))
    resumed = engine.resume(serving.load(path, engine))
    engine.drain()
    try:
        engine.submit(request)
        raise AssertionError("a drained engine took a request")
    except serving.Draining:
        engine.close()
    assert not differ and engine.counts.compilations == 0
    assert resumed.tokens[:4] == ticket.tokens[:4] and len(resumed.tokens) == 24
    finished = {str(each.finish) for each in tickets}
    print(f"process {index}: {len(tickets)} texts as alone {sorted(finished)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
