"""Speculative decoding for state-space and hybrid language models, in JAX."""

# Modules: rows of any past, an engine, and, with `builder` and `proposals` below, the
# pieces that one's own drafter, verifier or model is made of.
from jaxspec import ragged as ragged
from jaxspec import rows as rows
from jaxspec import sampling as sampling
from jaxspec import serving as serving
from jaxspec import trees as trees

# Fewer drafts where there is no time for all.
from jaxspec.budgets import limit as limit

# Programs that outlive the process.
from jaxspec.compilation import keep_programs as keep_programs

# Contracts.
from jaxspec.core import Context as Context
from jaxspec.core import Draft as Draft
from jaxspec.core import Drafter as Drafter
from jaxspec.core import DraftHead as DraftHead
from jaxspec.core import LanguageModel as LanguageModel
from jaxspec.core import Outcome as Outcome
from jaxspec.core import Params as Params
from jaxspec.core import Verdict as Verdict
from jaxspec.core import Verifier as Verifier
from jaxspec.core import deterministic_draft as deterministic_draft

# The loop and its state.
from jaxspec.decode_state import DecodeState as DecodeState
from jaxspec.decoding import generate as generate
from jaxspec.decoding import speculative_generate as speculative_generate

# Drafters by name, and what proposes and what decides.
from jaxspec.drafters.registry import drafter as drafter
from jaxspec.drafting import builder as builder
from jaxspec.drafting.beam import stochastic_beam as stochastic_beam
from jaxspec.drafting.best_first import best_first as best_first
from jaxspec.drafting.builder import Builder as Builder
from jaxspec.drafting.builder import Built as Built
from jaxspec.drafting.builder import Reader as Reader
from jaxspec.drafting.dyspec import dyspec as dyspec
from jaxspec.drafting.fusion import fuse as fuse
from jaxspec.drafting.head import draft_head as draft_head
from jaxspec.drafting.model import draft_model as draft_model
from jaxspec.drafting.ngram import ngram as ngram
from jaxspec.drafting.padded import with_vocab_size as with_vocab_size
from jaxspec.drafting.rasd import rasd as rasd
from jaxspec.drafting.recycling import recycling as recycling
from jaxspec.drafting.retrieval import retrieval as retrieval
from jaxspec.drafting.silent import silent as silent
from jaxspec.drafting.static import chain as chain
from jaxspec.drafting.static import static_tree as static_tree
from jaxspec.drafting.suffix import SuffixDecoder as SuffixDecoder
from jaxspec.drafting.suffix import SuffixTree as SuffixTree
from jaxspec.drafting.survival import Curve as Curve
from jaxspec.drafting.survival import calibrated as calibrated
from jaxspec.host_decoding import generate_from_host as generate_from_host
from jaxspec.models.adapter import from_step as from_step

# Models.
from jaxspec.models.config import AttentionConfig as AttentionConfig
from jaxspec.models.config import DeltaConfig as DeltaConfig
from jaxspec.models.config import Mamba1Config as Mamba1Config
from jaxspec.models.config import Mamba2Config as Mamba2Config
from jaxspec.models.config import MLPConfig as MLPConfig
from jaxspec.models.config import ModelConfig as ModelConfig
from jaxspec.models.config import MoEConfig as MoEConfig
from jaxspec.models.hybrid import language_model as language_model
from jaxspec.models.joint import joint as joint
from jaxspec.models.mtp import mtp_head as mtp_head
from jaxspec.padding import pad_prompts as pad_prompts
from jaxspec.pasts import Past as Past
from jaxspec.pasts import absorb as absorb
from jaxspec.pasts import init_past as init_past
from jaxspec.prefill import empty_state as empty_state
from jaxspec.prefill import init_state as init_state
from jaxspec.pretrained import Pretrained as Pretrained
from jaxspec.pretrained import load as load
from jaxspec.pretrained import load_mtp as load_mtp
from jaxspec.spec_info import SpecInfo as SpecInfo
from jaxspec.stepping import observe as observe
from jaxspec.stepping import propose as propose
from jaxspec.stepping import speculative_step as speculative_step
from jaxspec.stepping import verify as verify
from jaxspec.tokenizer_files import check_same_tokenizer as check_same_tokenizer
from jaxspec.trees import TokenTree as TokenTree
from jaxspec.verification import proposals as proposals
from jaxspec.verification.recursive_rejection import (
    recursive_rejection as recursive_rejection,
)
from jaxspec.verification.sample_and_match import sample_and_match as sample_and_match
from jaxspec.verification.traversal import traversal as traversal
