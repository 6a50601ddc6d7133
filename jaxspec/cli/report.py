"""Numbers about decoded texts: one object, or a table on standard error."""

from typing import Any

from rich import table as tables

from jaxspec import metrics, pretrained
from jaxspec.cli import terminal
from jaxspec.cli.following import Followed


def record(found: Followed) -> dict[str, Any]:
    """The object that `--json` prints; `text` and `tokens` are those of row 0."""
    rows, info = found.rows, found.info
    generated = sum(len(row.tokens) for row in rows)
    made = {
        "text": rows[0].text,
        "tokens": rows[0].tokens,
        "finish_reason": rows[0].finish_reason,
        "prompt_tokens": int(found.state.prompt_lengths[0]),
        "generated_tokens": generated,
        "target_calls": generated if info is None else int(info.target_calls.sum()),
        "block_efficiency": 1.0 if info is None else metrics.block_efficiency(info),
        "accepted_per_step": 0.0 if info is None else metrics.accepted_per_step(info),
        "seconds": found.seconds,
        "tokens_per_second": generated / found.seconds,
    }
    if len(rows) > 1:
        made["texts"] = [row.text for row in rows]
        made["finish_reasons"] = [row.finish_reason for row in rows]
    return made


def compare(
    target: pretrained.Pretrained, baseline: Followed, found: Followed
) -> dict[str, Any]:
    """The part of the object about the same texts, decoded without speculation."""
    check_finite(baseline)
    rows = range(len(found.rows))
    agreements = [
        metrics.compare(target.model, target.params, baseline.state, found.state, row)
        for row in rows
    ]
    speeds = [
        sum(len(row.tokens) for row in one.rows) / one.seconds
        for one in (baseline, found)
    ]
    return {
        "autoregressive": {
            "tokens_per_second": speeds[0],
            "identical": all(a.identical for a in agreements),
            "near_ties": sum(a.near_tie for a in agreements),
        },
        "speedup": speeds[1] / speeds[0],
    }


def check_finite(found: Followed) -> None:
    """Refuses texts that logits without a meaning have ended.

    Raises:
        FloatingPointError: naming row and position.
    """
    if found.not_finite is not None:
        row, position = found.not_finite
        raise FloatingPointError(
            f"The logits of row {row} for position {position} are not finite; its text "
            "ends there."
        )


def print_table(record: dict[str, Any]) -> None:
    """Prints what a reader wants to know of an object, on standard error."""
    table = tables.Table(show_header=False, box=None)
    table.add_row("tokens", str(record["generated_tokens"]))
    table.add_row("finished by", record["finish_reason"])
    table.add_row("target calls", str(record["target_calls"]))
    table.add_row(
        "block efficiency", f"{record['block_efficiency']:.2f} tokens per call"
    )
    table.add_row("speed", f"{record['tokens_per_second']:.0f} tokens/s")
    if "autoregressive" in record:
        baseline = record["autoregressive"]
        speed = baseline["tokens_per_second"]
        table.add_row("autoregressive", f"{speed:.0f} tokens/s")
        table.add_row("speedup", f"{record['speedup']:.2f} x")
        ties = baseline["near_ties"]
        same = "yes" if baseline["identical"] else f"no, {ties} part at a near tie"
        table.add_row("texts agree", same)
    terminal.console(stderr=True).print(table)
