"""Continuous batching: requests come and go in the rows of one running state.

    engine = serving.Engine(params, target=model, drafter=drafter, rows=8, max_length=1024)
    ticket = engine.submit(serving.Request(prompt=tokens, max_new_tokens=64))
    for delta in engine.stream(ticket): ...

A slot is a row, the pool is a `DecodeState` with more rows, and a request that is set aside
is a value. With `sample_and_match`, which verifies by default, what is written for a
request depends on the parameters, its prompt and its key, and on nothing else.

    requests   what is asked, and what is answered
    scheduler  who runs next; no arrays
    machinery  models and sizes
    programs   the pool's functions, each compiled once
    steps      rounds of all rows
    news       what a step tells the host
    pieces     pasts, cut at the borders of chunks
    prefixes   a cache of them
    buckets    trees of fewer slots
    policies   how many drafts for whom
    gains      what drafts have brought
    goodput    as many as pay
    replay     an engine on a virtual clock
    pool       rows on the device, and steps on their way
    prompts    chunks of prompts, from where the cache ends
    engine     plans carried out
    service    what every engine offers
    lengths    a pool for each length
    suspended  texts on disk
    processes  one engine over several of them
"""

from jaxspec.serving.engine import Engine as Engine
from jaxspec.serving.gains import Gains as Gains
from jaxspec.serving.goodput import Goodput as Goodput
from jaxspec.serving.goodput import SmartSpec as SmartSpec
from jaxspec.serving.goodput import StepCosts as StepCosts
from jaxspec.serving.lengths import ByLength as ByLength
from jaxspec.serving.policies import Policy as Policy
from jaxspec.serving.prefixes import Prefixes as Prefixes
from jaxspec.serving.processes import Leader as Leader
from jaxspec.serving.processes import Link as Link
from jaxspec.serving.processes import Parted as Parted
from jaxspec.serving.processes import follow as follow
from jaxspec.serving.requests import Delta as Delta
from jaxspec.serving.requests import Draining as Draining
from jaxspec.serving.requests import Finish as Finish
from jaxspec.serving.requests import QueueFull as QueueFull
from jaxspec.serving.requests import Request as Request
from jaxspec.serving.requests import Suspended as Suspended
from jaxspec.serving.requests import Ticket as Ticket
from jaxspec.serving.scheduler import Scheduler as Scheduler
from jaxspec.serving.suspended import load as load
from jaxspec.serving.suspended import save as save
