"""Reading a published config: every field is read, known not to matter, or refused.

A field that nobody reads may change what the model computes. One that is off (null,
false, zero, empty) is taken for one that is not there.
"""

import math
import sys
from reprlib import repr as brief
from typing import Any

REQUIRED = object()

IRRELEVANT = {  # to what a model computes
    *("_name_or_path", "architectures", "auto_map", "model_type", "name_or_path"),
    *("transformers_version", "torch_dtype", "dtype", "use_cache", "id2label"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "label2id"),
    *("initializer_range", "initializer_factor", "max_position_embeddings"),
    *("max_length", "num_logits_to_keep", "output_router_logits", "return_dict"),
    *("router_aux_loss_coef", "attention_dropout", "hidden_dropout", "dropout"),
    *("use_mamba_kernels", "residual_in_fp32", "rescale_prenorm_residual"),
    *("fused_add_norm", "z_loss_coefficient", "pretraining_tp", "is_decoder"),
    *("use_mambapy", "use_falcon_mambapy", "use_associative_scan"),
    *("use_mem_eff_path", "attn_implementation", "_attn_implementation"),
    *("time_step_min", "time_step_max", "time_step_floor", "time_step_scale"),
    *("time_step_init_scheme", "mamba_ssm_cache_dtype", "bos_token", "eos_token"),
    *("problem_type", "tokenizer_class", "task_specific_params"),
    "transformers.js_config",
}
"""How weights were begun, trained or cached, and what tokens are called."""

SIZES, COUNTED = 2**31 - 1, 2**14
"""Bounds of any whole number, and of those that tables of names are as long as."""

COUNTS = {
    *("num_hidden_layers", "n_layer", "num_mem_blocks"),
    *("num_experts", "num_local_experts", "n_routed_experts"),
}


class Fields:
    """The fields of a config that are yet to be read."""

    def __init__(self, record: dict[str, Any], file: str = "config.json"):
        if not isinstance(record, dict):
            raise ValueError(f"{file} must hold an object, got {brief(record)}.")
        self._file = file
        self._left = dict(record)
        self._seen: dict[str, Any] = {}

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """A field of any type.

        Raises:
            ValueError: if it is missing and there is no default.
        """
        if name in self._left:
            self._seen[name] = self._left.pop(name)
        value = self._seen.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise ValueError(f"{self._file} has no field {name}.")
        return default

    def integer(self, name: str, default: Any = REQUIRED) -> Any:
        """A whole number, of a size that models have."""
        value = self._typed(name, default, int, "a whole number")
        limit = COUNTED if name in COUNTS else SIZES
        if value is not default and abs(value) > limit:
            raise ValueError(
                f"{self._file}: {name} must be at most {limit}, got {brief(value)}."
            )
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        """A number."""
        value = self._typed(name, default, (int, float), "a number")
        if value is not default and abs(value) > sys.float_info.max:
            raise ValueError(
                f"{self._file}: {name} must be finite, got {brief(value)}."
            )
        return float(value) if isinstance(value, int) else value

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """As many numbers as there are by default; some may be infinite.

        Infinity has many spellings, as JSON has none: `Infinity` (Python's),
        `"Infinity"` or `"inf"`, `{"__float__": "Infinity"}` (transformers 5's), and null
        (JavaScript's), which here stands for the default.
        """
        values = self.items(name, default)
        if len(values) != len(default):
            raise ValueError(
                f"{self._file}: {name} must be {len(default)} numbers, got {brief(values)}."
            )
        found = tuple(_plain(x, d) for x, d in zip(values, default, strict=True))
        for value, number in zip(values, found, strict=True):
            if math.isnan(number):
                raise ValueError(
                    f"{self._file}: {name} must be numbers, got {brief(value)} in it."
                )
        return found

    def items(self, name: str, default: Any = REQUIRED) -> Any:
        """A list."""
        return self._typed(name, default, (list, tuple), "a list")

    def flag(self, name: str, default: Any = REQUIRED) -> Any:
        """Yes or no."""
        return self._typed(name, default, bool, "true or false")

    def expect(self, name: str, *allowed: Any) -> None:
        """A field that must have one of a few values, where it is there.

        Raises:
            ValueError: if it has another.
        """
        value = self.take(name, None)
        if value is not None and value not in allowed:
            raise ValueError(
                f"{self._file}: jaxspec does not implement {name} {brief(value)}; it must "
                f"be {' or '.join(map(repr, allowed))}."
            )

    def skip(self, *names: str) -> None:
        """Fields of the family that do not matter."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuses what is left.

        Raises:
            ValueError: naming it.
        """
        unknown = {
            name: value
            for name, value in self._left.items()
            if value and name not in IRRELEVANT
        }
        if unknown:
            listed = ", ".join(
                f"{name} {brief(unknown[name])}" for name in sorted(unknown)
            )
            raise ValueError(f"{self._file}: jaxspec does not implement {listed}.")

    def _typed(self, name: str, default: Any, types: Any, words: str) -> Any:
        value = self.take(name, default)
        if value is default:
            return value
        if not isinstance(value, types) or isinstance(value, bool) != (types is bool):
            raise ValueError(
                f"{self._file}: {name} must be {words}, got {brief(value)}."
            )
        return value


def _plain(value: Any, default: float) -> float:
    """A number of any spelling; NaN for what is none."""
    if value is None:
        return default
    found = value.get("__float__") if isinstance(value, dict) else value
    try:
        return math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        return math.nan
    except OverflowError:  # a whole number beyond float64
        return math.inf
