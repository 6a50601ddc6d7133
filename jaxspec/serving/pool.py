"""The rows of a pool on the device, and the steps that are on their way.

Nothing of the pool is read on the host but the news of its steps, and those late: `read`
takes the oldest, while the next one runs.
"""

import collections
import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxspec.core import Params
from jaxspec.decode_state import DecodeState
from jaxspec.pasts import Past
from jaxspec.serving import news, texts
from jaxspec.serving.machinery import Machinery
from jaxspec.serving.news import News
from jaxspec.serving.programs import Programs
from jaxspec.serving.requests import Ticket
from jaxspec.serving.steps import Control


class Pool:
    """A `DecodeState`, and who has its rows.

    Attributes:
        owners: of each row, None for a free one.
        waited: seconds that were spent waiting for news.
    """

    def __init__(self, machinery: Machinery, programs: Programs, params: Params):
        """Begins with free rows, as few as there may be."""
        self._machinery, self._params = machinery, params
        self._put, self._number = machinery.put, machinery.put_integer
        self.programs = programs
        self._state = programs.pool[machinery.rows[0]](params)
        self.owners: list[Ticket | None] = [None] * machinery.rows[0]
        self.waited = 0.0
        self._stop: set[int] = set()  # rows without an owner that may not be done
        self._flying: collections.deque = collections.deque()

    @property
    def size(self) -> int:
        """Rows that there are."""
        return len(self.owners)

    @property
    def num_flying(self) -> int:
        """Steps whose news were not read."""
        return len(self._flying)

    @property
    def flying(self) -> list[Ticket]:
        """Tickets whose news are on their way."""
        return [t for owners, *_ in self._flying for t in owners if t is not None]

    def copy(self, row: int) -> DecodeState:
        """A row as a value, after all steps that were dispatched."""
        return self.programs.take[self.size](self._state, self._number(row))

    def free(self, row: int) -> None:
        """Takes a row from its owner; the next step leaves it alone."""
        self.owners[row] = None
        self._stop.add(row)

    def let(self, ticket: Ticket, row: int, value: Past | DecodeState) -> None:
        """Gives a ticket a row.

        Args:
            ticket: the tenant.
            row: a free one.
            value: the past of its prompt, or a row that was copied.
        """
        if isinstance(value, DecodeState):
            key = self._put(texts.key(ticket.request.seed))
            put = self.programs.put[self.size]
            self._state = put(self._state, self._number(row), value, key)
        else:
            text = self._put(texts.text(ticket.request, self._machinery))
            admit = self.programs.admit[self.size]
            self._state = admit(self._state, value, self._number(row), text)
        self.owners[row] = ticket
        self._stop.discard(row)

    def resize(self, size: int, rows: Sequence[int]) -> None:
        """Becomes a pool of another size, which begins with some rows of this one."""
        index = np.zeros(size, np.int32)
        index[: len(rows)] = rows
        resize = self.programs.resize[self.size, size]
        self._state = resize(self._state, self._put(index))
        self._stop = {i for i, row in enumerate(rows) if row in self._stop}
        self._stop |= {*range(len(rows), size)}
        free = [None] * (size - len(rows))
        self.owners = [*(self.owners[row] for row in rows), *free]

    def dispatch(self, budgets: np.ndarray, rounds: int) -> None:
        """Dispatches a step of all rows.

        Args:
            budgets: `[R]` int32, draft nodes of each row at most.
            rounds: of the target at most.
        """
        stop = np.zeros(self.size, bool)
        stop[list(self._stop)] = True
        self._stop.clear()
        most = min(int(budgets.max()), self._machinery.num_nodes - 1)
        nodes = next(n for n in self._machinery.nodes if n > most)
        control = self._put(Control(budgets, stop, np.int32(rounds)))
        step = self.programs.step[self.size, nodes]
        self._state, packed = step(self._params, self._state, control)
        packed.copy_to_host_async()
        self._flying.append((tuple(self.owners), budgets, packed))

    def read(self) -> tuple[tuple[Ticket | None, ...], np.ndarray, News]:
        """Whose rows were in the oldest step, under which budgets, and its news."""
        owners, budgets, packed = self._flying.popleft()
        began = time.perf_counter()
        packed = jax.device_get(packed)
        self.waited += time.perf_counter() - began
        return owners, budgets, news.unpack(packed, self._machinery.drafter.max_path)
