"""The contracts: records of pure functions, and the data that passes between them.

A user joins their own model, drafter or verifier by filling in a record; nothing is
inherited. Factories return equal records for equal settings, so that a record can be a
static argument of `jax.jit` and a notebook cell that is run again does not recompile.

    B batch    N nodes of a tree    T tokens    V vocabulary    C width of the hidden
    D nodes on the longest path, the root included    M expanded nodes

A record is on the first screen of its file; below it is a `Protocol` for each of its
functions, which types it and says what it promises. Loops pass arguments by position, so
that a function may name them as it likes; the few that are passed by name follow a `/`.
"""

from jaxspec.core.draft_head import DraftHead as DraftHead
from jaxspec.core.drafter import Drafter as Drafter
from jaxspec.core.drafter import Params as Params
from jaxspec.core.drafts import Context as Context
from jaxspec.core.drafts import Draft as Draft
from jaxspec.core.drafts import deterministic_draft as deterministic_draft
from jaxspec.core.language_model import LanguageModel as LanguageModel
from jaxspec.core.outcomes import Outcome as Outcome
from jaxspec.core.outcomes import Verdict as Verdict
from jaxspec.core.outcomes import emitted_tokens as emitted_tokens
from jaxspec.core.verifier import Verifier as Verifier
