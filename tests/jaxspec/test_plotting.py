"""Pictures have the parts that they should."""

import jax.numpy as jnp
import pytest
from matplotlib import colors

from jaxspec import plotting
from jaxspec.trees import TokenTree

# A root with two children, a chain below the second; and a root with padding.
TREE = TokenTree(
    jnp.array([[9, 3, 4, 5, 6], [1, 2, 0, 0, 0]]),
    jnp.array([[-1, 0, 0, 2, -1], [-1, 0, -1, -1, -1]]),
)
PATH = jnp.array([[0, 2, 3, -1], [-1, -1, -1, -1]])


@pytest.mark.parametrize("row, texts", [(0, "9345"), (1, "12")])
def test_a_tree_has_a_box_for_every_node_and_an_edge_for_every_child(row, texts):
    (axes,) = plotting.tree(TREE, row=row).axes
    boxes = {box.get_text(): box.xy for box in axes.texts}
    assert sorted(boxes) == sorted(texts)
    assert len(set(boxes.values())) == len(texts)  # no two on one another
    assert len(axes.lines) == len(texts) - 1


def test_edges_join_a_node_to_its_parent():
    (axes,) = plotting.tree(TREE).axes
    at = {int(box.get_text()): tuple(map(float, box.xy)) for box in axes.texts}
    edges = {tuple(map(tuple, line.get_xydata().tolist())) for line in axes.lines}
    assert edges == {(at[9], at[3]), (at[9], at[4]), (at[4], at[5])}
    depths = {token: x for token, (x, _) in at.items()}
    assert depths == {9: 0, 3: 1, 4: 1, 5: 2}


def test_the_accepted_path_is_in_colour():
    (axes,) = plotting.tree(TREE, PATH).axes
    colour = {
        box.get_text(): colors.to_hex(box.get_bbox_patch().get_facecolor())
        for box in axes.texts
    }
    assert colour == {
        "9": plotting.TARGET,
        "3": plotting.REJECTED,
        "4": plotting.DRAFT,
        "5": plotting.DRAFT,
    }
    edges = [line.get_color() for line in axes.lines]
    assert edges == [plotting.REJECTED, plotting.DRAFT, plotting.DRAFT]
    assert axes.get_title() == "3 drafts, 2 accepted"


def test_a_done_row_has_accepted_nothing():
    (axes,) = plotting.tree(TREE, PATH, row=1).axes
    assert axes.get_title() == "1 drafts, 0 accepted"
    assert [line.get_color() for line in axes.lines] == [plotting.REJECTED]


def test_labels_are_the_callers():
    (axes,) = plotting.tree(TREE, row=1, label=lambda token: f"<{token}>").axes
    assert [box.get_text() for box in axes.texts] == ["<1>", "<2>"]


LOG = [
    {"step": 0, "loss": 3.0},
    {"step": 1, "loss": 2.0, "held_out_bits_per_byte": 2.5},
    {"step": 2, "held_out_bits_per_byte": 2.25},
]


def test_a_loss_curve_draws_both_logs_and_gzip():
    left, right = plotting.loss_curve(LOG, 1.5, "toy").axes
    assert left.lines[0].get_xydata().tolist() == [[0, 3], [1, 2]]
    held_out, gzip = right.lines
    assert held_out.get_xydata().tolist() == [[1, 2.5], [2, 2.25]]
    assert set(gzip.get_ydata()) == {1.5}


ROWS = [
    dict(name=name, rollback=rollback, temperature=t, speedup=s, block_efficiency=e)
    for name, rollback, t, s, e in [
        ("a", "lazy", 0.0, 2.0, 3.0),
        ("b", "replay", 0.5, 0.8, 1.2),
    ]
]


def test_speedups_draw_two_bars_a_row():
    left, right = plotting.speedups(ROWS, "toy").axes
    assert [bar.get_width() for bar in left.patches] == [2.0, 0.8]
    assert [bar.get_width() for bar in right.patches] == [3.0, 1.2]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["a, lazy, T = 0", "b, replay, T = 0.5"]
    faces = [colors.to_hex(bar.get_facecolor()) for bar in left.patches]
    assert faces == [plotting.DRAFT, plotting.REJECTED]  # slower is grey


COMPARED = {  # of drafters: two kinds, of which one was measured at both budgets
    "settings": {"domains": ["toy"], "temperatures": [0.0]},
    "rows": [
        dict(kind=kind, nodes=n, domain=0, temperature=0.0, verifier=v)
        | dict(block_efficiency=e, low=e - 0.5, high=e + 0.25)
        for kind, n, v, e in [
            ("chain", 4, "traversal", 2.0),
            ("chain", 8, "traversal", 3.0),
            ("chain", 8, "recursive-rejection", 2.5),
            ("ngram", 4, "sample-and-match", 1.5),
        ]
    ],
}


@pytest.mark.parametrize("count", [1, 2])
def test_drafters_draw_a_line_each(count):
    """The best verifier at every budget, and its interval."""
    kinds = ["chain", "ngram"][:count]
    rows = [row for row in COMPARED["rows"] if row["kind"] in kinds]
    picture = plotting.drafters(COMPARED | {"rows": rows})
    (axes,) = picture.axes
    assert [text.get_text() for text in picture.legends[0].texts] == kinds
    lines = [container.lines for container in axes.containers]
    points = [line.get_xydata().tolist() for line, *_ in lines]
    assert points == [[[4, 2.0], [8, 3.0]], [[4, 1.5]]][:count]
    (bars,) = lines[0][2]
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [
        [1.5, 2.25],
        [2.5, 3.25],
    ]


@pytest.mark.parametrize(
    "picture",
    [
        lambda: plotting.tree(TREE, PATH),
        lambda: plotting.loss_curve(LOG, 1.5, "toy"),
        lambda: plotting.loss_curve(LOG[:1], 1.5, "nothing held out yet"),
        lambda: plotting.speedups(ROWS, "toy"),
    ],
    ids=["tree", "loss_curve", "loss_curve without held out", "speedups"],
)
def test_pictures_are_saved_as_png(picture, tmp_path):
    plotting.save(picture(), tmp_path / "picture.png")
    raw = (tmp_path / "picture.png").read_bytes()
    assert raw.startswith(b"\x89PNG") and raw.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")


def test_the_ending_chooses_the_format(tmp_path):
    plotting.save(plotting.tree(TREE), tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_reliability_has_a_line_per_drafter_beside_the_diagonal():
    bins = {"estimate": [0.1, 0.5], "outcome": [0.2, 0.4], "count": [3, 1]}
    rows = [
        {
            "drafter": name,
            "error_as_told": 0.1,
            "error_by_curve": 0.025,
            "as_told": bins,
            "by_curve": bins | {"estimate": [0.15, 0.45]},
        }
        for name in ("chain:8", "dyspec:8")
    ]
    record = {"drafters": rows, "target": "a", "draft": "b", "temperature": 1.0}
    left, right = plotting.reliability(record).axes
    assert left.get_title() == "as told" and right.get_title() == "by curve"
    for axes, first in ((left, 0.1), (right, 0.15)):
        diagonal, *lines = axes.lines
        assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
        assert [line.get_xydata()[0].tolist() for line in lines] == [[first, 0.2]] * 2
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["chain:8, 0.025", "dyspec:8, 0.025"]
