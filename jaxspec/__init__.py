"""Speculative decoding for state-space and hybrid language models, in JAX."""

from jaxspec.core import Draft as Draft
from jaxspec.core import Drafter as Drafter
from jaxspec.core import LanguageModel as LanguageModel
from jaxspec.core import Verdict as Verdict
from jaxspec.core import Verifier as Verifier
from jaxspec.decoding import DecodeState as DecodeState
from jaxspec.decoding import Params as Params
from jaxspec.decoding import SpecInfo as SpecInfo
from jaxspec.decoding import generate as generate
from jaxspec.decoding import init_state as init_state
from jaxspec.decoding import pad_prompts as pad_prompts
from jaxspec.decoding import speculative_generate as speculative_generate
from jaxspec.decoding import speculative_step as speculative_step
from jaxspec.trees import TokenTree as TokenTree
