"""Pictures, with matplotlib (`pip install jaxspec[plot]`)."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

try:
    import matplotlib
    from matplotlib import figure as figures
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "Pictures need matplotlib: pip install 'jaxspec[plot]'."
    ) from None

from jaxspec.trees import TokenTree

TARGET, DRAFT, REJECTED = "#1b6ca8", "#2a9d5c", "#b9b9b9"


def tree(
    tree: TokenTree,
    path: Any = None,
    row: int = 0,
    label: Callable[[int], str] = str,
) -> figures.Figure:
    """Draws one tree of a batch, the root on the left, its accepted path in colour.

    Args:
        tree: the trees.
        path: `[B, D]` accepted nodes, -1 padded, as in a `Verdict`; None for none.
        row: which tree.
        label: text of a token.
    """
    parents, tokens = np.asarray(tree.parents)[row], np.asarray(tree.tokens)[row]
    nodes = [0, *np.flatnonzero(parents >= 0)]
    kept = set() if path is None else set(np.asarray(path)[row].tolist()) - {-1}
    depth, height = {0: 0}, {}
    for node in nodes[1:]:
        depth[node] = depth[parents[node]] + 1
    children = {node: [n for n in nodes[1:] if parents[n] == node] for node in nodes}
    _place(0, children, height, [0])

    width, rows = max(depth.values()) + 1, max(height.values()) + 1
    picture = figures.Figure((1.6 * width + 0.6, 0.5 * rows + 0.8))
    axes = picture.subplots()
    for node in nodes[1:]:
        above = parents[node]
        on_path = node in kept and above in kept
        axes.plot(
            [depth[above], depth[node]],
            [height[above], height[node]],
            color=DRAFT if on_path else REJECTED,
            linewidth=2.5 if on_path else 1.0,
            zorder=1,
        )
    for node in nodes:
        colour = TARGET if node == 0 else DRAFT if node in kept else REJECTED
        axes.annotate(
            label(int(tokens[node])),
            (depth[node], height[node]),
            ha="center",
            va="center",
            fontsize=9,
            family="monospace",
            color="white" if node in kept or node == 0 else "#333333",
            bbox={"boxstyle": "round,pad=0.3", "fc": colour, "ec": "none"},
        )
    axes.set_xlim(-0.6, width - 0.4)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_axis_off()
    accepted = max(len(kept) - 1, 0)
    axes.set_title(f"{len(nodes) - 1} drafts, {accepted} accepted", fontsize=10)
    picture.tight_layout()
    return picture


def _place(
    node: int, children: dict[int, list[int]], height: dict[int, float], free: list[int]
) -> None:
    """Gives leaves the next free line, and parents the middle of their children."""
    for child in children[node]:
        _place(child, children, height, free)
    if children[node]:
        height[node] = float(np.mean([height[child] for child in children[node]]))
    else:
        height[node], free[0] = float(free[0]), free[0] + 1


def loss_curve(
    log: Sequence[dict[str, Any]], gzip: float, title: str
) -> figures.Figure:
    """Draws a training run: loss per token, and held-out bits per byte beside gzip's."""
    picture = figures.Figure((8, 3.2))
    left, right = picture.subplots(1, 2)
    steps = [(r["step"], r["loss"]) for r in log if "loss" in r]
    left.plot(*zip(*steps, strict=True), color=TARGET, linewidth=0.8)
    left.set(xlabel="step", ylabel="nats per token", title=f"{title}: training loss")
    held = [
        (r["step"], r["held_out_bits_per_byte"])
        for r in log
        if "held_out_bits_per_byte" in r
    ]
    if held:
        right.plot(*zip(*held, strict=True), color=DRAFT, marker=".")
    right.axhline(gzip, color=REJECTED, linestyle="--", label="gzip -9, per file")
    right.set(xlabel="step", ylabel="bits per byte", title="held out")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    picture.tight_layout()
    return picture


def speedups(rows: Sequence[dict[str, Any]], title: str) -> figures.Figure:
    """Draws a benchmark: speed over the autoregressive loop, and tokens per call.

    Args:
        rows: each with `name`, `rollback`, `temperature`, `speedup` and
            `block_efficiency`.
        title: of the picture.
    """
    picture = figures.Figure((8, 0.35 * len(rows) + 1.4))
    left, right = picture.subplots(1, 2, sharey=True)
    names = [f"{r['name']}, {r['rollback']}, T = {r['temperature']:g}" for r in rows]
    place = np.arange(len(rows))
    speed = [row["speedup"] for row in rows]
    colours = [DRAFT if s >= 1.0 else REJECTED for s in speed]
    left.barh(place, speed, color=colours)
    left.axvline(1.0, color="#333333", linewidth=0.8)
    left.set(xlabel="speed over the autoregressive loop", yticks=place)
    left.set_yticklabels(names)
    left.invert_yaxis()
    right.barh(place, [row["block_efficiency"] for row in rows], color=TARGET)
    right.set(xlabel="tokens per target call")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    picture.suptitle(title, fontsize=10)
    picture.tight_layout()
    return picture


def drafters(record: dict[str, Any]) -> figures.Figure:
    """Draws a comparison: tokens per call over nodes, a panel per domain and temperature.

    Of verifiers the best is drawn for every kind; bars are 95 % intervals.

    Args:
        record: of `jaxspec bench drafters`.
    """
    settings = record["settings"]
    domains, temperatures = settings["domains"], settings["temperatures"]
    kinds = list(dict.fromkeys(row["kind"] for row in record["rows"]))
    budgets = sorted({row["nodes"] for row in record["rows"]})
    colours = matplotlib.colormaps["tab20"](np.linspace(0.0, 1.0, len(kinds)))
    size = 3.4 * len(temperatures) + 1.6, 2.8 * len(domains) + 0.4
    picture = figures.Figure(size)
    panels = picture.subplots(
        len(domains), len(temperatures), sharex=True, sharey="row", squeeze=False
    )
    for i, domain in enumerate(domains):
        for j, temperature in enumerate(temperatures):
            axes = panels[i, j]
            for kind, colour in zip(kinds, colours, strict=True):
                best = {}
                for row in record["rows"]:
                    where = row["kind"], row["domain"], row["temperature"]
                    if where == (kind, i, temperature):
                        old = best.get(row["nodes"], row)
                        best[row["nodes"]] = max(
                            old, row, key=lambda r: r["block_efficiency"]
                        )
                line = [best[nodes] for nodes in sorted(best)]
                middle = np.array([row["block_efficiency"] for row in line])
                ends = [[row["low"] for row in line], [row["high"] for row in line]]
                axes.errorbar(
                    [row["nodes"] for row in line],
                    middle,
                    np.abs(np.array(ends) - middle[None]),
                    color=colour,
                    label=kind,
                    linewidth=1.2,
                    elinewidth=0.5,
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(budgets, map(str, budgets))
            axes.set_title(f"{domain}, T = {temperature:g}", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
        panels[i, 0].set_ylabel("tokens per call")
    for axes in panels[-1]:
        axes.set_xlabel("nodes")
    lines = panels[0, 0].get_legend_handles_labels()
    picture.legend(*lines, loc="center right", frameon=False, fontsize=8)
    picture.tight_layout(rect=(0.0, 0.0, 1.0 - 1.5 / size[0], 1.0))
    return picture


def tuned_trees(record: dict[str, Any]) -> figures.Figure:
    """Draws what `jaxspec tune tree` found: acceptance by rank, and trees by their size.

    Args:
        record: what the command writes.
    """
    picture = figures.Figure((8, 3.2))
    left, right = picture.subplots(1, 2)
    shares = np.asarray(record["acceptance"])
    left.bar(np.arange(1, len(shares) + 1).astype(str), shares, color=DRAFT)
    left.set(xlabel="rank", ylabel="accepted, share of places", yscale="log")
    nodes = [row["num_nodes"] for row in record["trees"]]
    tokens = [row["expected_tokens"] for row in record["trees"]]
    speed = [row["speedup"] for row in record["trees"]]
    right.plot(nodes, tokens, color=TARGET, marker=".", label="tokens per call")
    right.plot(nodes, speed, color=DRAFT, marker=".", label="speedup")
    right.axhline(1.0, color=REJECTED, linewidth=0.8)
    right.set_xscale("log", base=2)
    right.set(xlabel="nodes of the tree")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    title = f"{record['draft']} for {record['target']}, T = {record['temperature']:g}"
    picture.suptitle(title, fontsize=10)
    picture.tight_layout()
    return picture


def reliability(record: dict[str, Any]) -> figures.Figure:
    """Draws what `jaxspec tune survival` found: drafts kept against what was promised.

    On the left by the scores as they are, on the right by the fitted curves; both on texts
    that nothing was fitted to. A point's area is in proportion to its drafts.

    Args:
        record: what the command writes.
    """
    picture = figures.Figure((9.2, 3.8))
    panels = picture.subplots(1, 2, sharex=True, sharey=True)
    rows = record["drafters"]
    colours = matplotlib.colormaps["tab20"](np.linspace(0.0, 1.0, len(rows)))
    for axes, name in zip(panels, ("as_told", "by_curve"), strict=True):
        axes.plot([0.0, 1.0], [0.0, 1.0], color=REJECTED, linewidth=0.8)
        for row, colour in zip(rows, colours, strict=True):
            bins, error = row[name], row[f"error_{name}"]
            label = f"{row['drafter']}, {error:.3f}"
            points = bins["estimate"], bins["outcome"]
            axes.plot(*points, color=colour, linewidth=1.0, label=label)
            area = 60.0 * np.sqrt(np.array(bins["count"]) / sum(bins["count"]))
            axes.scatter(*points, area, color=[colour])
        axes.set(xlabel="promised", title=name.replace("_", " "))
        axes.legend(frameon=False, fontsize=6, title="error", title_fontsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("kept")
    title = f"{record['draft']} for {record['target']}, T = {record['temperature']:g}"
    picture.suptitle(title, fontsize=10)
    picture.tight_layout()
    return picture


def load(minutes: Sequence[dict[str, Any]]) -> figures.Figure:
    """Draws how requests fared by the minute: waits above, memory below.

    Args:
        minutes: as `jaxspec bench load` reports them.
    """
    picture = figures.Figure((7.2, 4.4))
    waits, memory = picture.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    when = [row["minute"] for row in minutes]
    for name, label in (("first", "first token"), ("between", "between deliveries")):
        values = 1e3 * np.array([row[name] for row in minutes])
        (line,) = waits.plot(when, values[:, 0], linewidth=1.2, label=label)
        waits.plot(
            when,
            values[:, 1],
            linewidth=1.0,
            linestyle=":",
            color=line.get_color(),
            label=f"{label}, 99 %",
        )
    waits.set(ylabel="ms", yscale="log")
    waits.legend(frameon=False, fontsize=8)
    memory.plot(when, [row["memory"] / 2**20 for row in minutes], linewidth=1.2)
    memory.set(xlabel="minute", ylabel="MiB", ylim=(0, None))
    for axes in (waits, memory):
        axes.spines[["top", "right"]].set_visible(False)
    picture.tight_layout()
    return picture


def step_costs(seconds: Mapping[tuple[int, int], float]) -> figures.Figure:
    """Draws what steps cost over their nodes, a line for each number of rows.

    Args:
        seconds: by rows and nodes.
    """
    picture = figures.Figure((5.4, 3.6))
    axes = picture.subplots()
    nodes = sorted({n for _, n in seconds})
    for rows in sorted({rows for rows, _ in seconds}):
        times = [1e3 * seconds[rows, n] for n in nodes]
        axes.plot(nodes, times, marker="o", markersize=3, linewidth=1.2)
        axes.annotate(
            f"{rows} rows" if rows > 1 else "1 row",
            (nodes[-1], times[-1]),
            xytext=(5, -3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel="nodes of a row's tree", ylabel="ms of a step", ylim=(0, None))
    axes.set_xticks(nodes, [str(n) for n in nodes])
    axes.spines[["top", "right"]].set_visible(False)
    picture.tight_layout()
    return picture


def save(picture: figures.Figure, path: str | pathlib.Path) -> None:
    """Writes a picture; the ending says in which format."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        picture.savefig(path, dpi=150)
