"""Checkpoints to jaxspec params, and back."""

from checkpoints_conv.conversion import convert as convert
from checkpoints_conv.exporting import export as export
