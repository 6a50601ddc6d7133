"""Checkpoints to jaxspec params, and back."""

from checkpoints_conv import native as native
