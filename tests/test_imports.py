"""The layers import each other downwards only."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = [  # lowest first: folders and modules that may import each other one way only
    ["pallas_kernels"],
    [
        f"jaxspec.{name}"
        for name in (
            "ragged budgets checks compilation core digests files mesh padding "
            "rows sampling tensor_files text tokenizer_files trees weights"
        ).split()
    ],
    ["jaxspec.models", "jaxspec.drafting", "jaxspec.verification"],
    [
        f"jaxspec.{name}"
        for name in (
            "checkpointing decode_state decoding drafters host_decoding loop_checks "
            "metrics pasts plotting prefill pretrained serving sharding spec_info stepping"
        ).split()
    ],
    ["checkpoints_conv"],  # above what it converts for, which knows it not
    ["jaxspec.measure", "jaxspec.aot"],
    ["jaxspec.assets", "jaxspec.cli"],
    ["jaxspec.train"],
    ["jaxspec.bench", "jaxspec.tune"],
    ["jaxspec.__main__"],  # the roof: it alone knows all commands
]
DRAFTS = ["jaxspec.drafting", "jaxspec.verification"]
NEIGHBOURS = {  # a module, and what it knows nothing of
    "jaxspec.decoding": ["jaxspec.models", *DRAFTS],
    "jaxspec.decode_state": ["jaxspec.models", *DRAFTS],
    "jaxspec.host_decoding": ["jaxspec.models", *DRAFTS],
    "jaxspec.pasts": ["jaxspec.models", *DRAFTS],
    "jaxspec.prefill": ["jaxspec.models", *DRAFTS],
    "jaxspec.serving": ["jaxspec.models", *DRAFTS],
    "jaxspec.spec_info": ["jaxspec.models", *DRAFTS],
    "jaxspec.stepping": ["jaxspec.models", *DRAFTS],
    "jaxspec.models": [*DRAFTS, "checkpoints_conv"],
    "checkpoints_conv": ["jaxspec"],
    "jaxspec.measure": ["jaxspec.aot"],
    "jaxspec.bench": ["jaxspec.tune"],
    "jaxspec.tune": ["jaxspec.bench"],
}
EXCEPT = {  # what it knows nevertheless
    "jaxspec.decoding": {"jaxspec.verification.sample_and_match"},  # the default
    "jaxspec.host_decoding": {"jaxspec.verification.sample_and_match"},
    "jaxspec.serving": {"jaxspec.verification.sample_and_match"},
    # A record of numbers, and files as such.
    "checkpoints_conv": {"jaxspec.models.config", "jaxspec.digests", "jaxspec.files"}
    | {"jaxspec.tokenizer_files", "jaxspec.weights"},
}
ASKS_FOR_THE_PLATFORM = re.compile(
    r"platform_dependent|default_backend|jax\.devices\(|\.platform\b"
)
OURS = ("jaxspec", "pallas_kernels", "checkpoints_conv")


def modules():
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if is_module(name) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def within(module, names):
    return any(module == name or module.startswith(name + ".") for name in names)


def layer(module):
    found = [level for level, names in enumerate(LAYERS) if within(module, names)]
    return found[0] if found else None


def test_every_module_has_a_layer():
    homeless = [name for name, _ in modules() if layer(name) is None]
    assert homeless == ["jaxspec"]  # the table of contents


def circle(graph):
    """One, as a list of names that begins and ends alike; None if there is none."""
    done, trail = set(), []

    def visit(name):
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            trail.append(name)
            found = [c for c in map(visit, sorted(graph[name])) if c]
            done.add(trail.pop())
            return found[0] if found else None

    return next(filter(None, map(visit, sorted(graph))), None)


@pytest.mark.parametrize("name, path", list(modules()))
def test_imports_go_down(name, path):
    if name == "jaxspec":
        return
    for module in imported(path):
        if layer(module) is not None:
            assert layer(module) <= layer(name), f"{name} imports {module}"


def test_kernels_import_jax_only():
    for name, path in modules():
        if name.startswith("pallas_kernels"):
            tops = {m.split(".")[0] for m in imported(path)}
            assert tops <= {"jax", "pallas_kernels", *sys.stdlib_module_names}, name


def test_ops_of_kernels_know_the_wing_and_not_each_other():
    """An op's folder imports itself, what ops share at the top, and `gated`."""
    folders = sorted(p.parent.name for p in ROOT.glob("pallas_kernels/*/__init__.py"))
    ops = {f"pallas_kernels.{name}" for name in folders}
    wing = "pallas_kernels.gated"
    assert wing in ops and len(ops) > 5
    for name, path in modules():
        home = ".".join(name.split(".")[:2])
        if home in ops:
            others = [m for m in imported(path) if within(m, ops - {home, wing})]
            assert not others, f"{name} imports {others}"
        elif name.startswith("pallas_kernels."):
            assert not any(within(m, ops) for m in imported(path)), name


def test_there_are_no_cycles():
    names = dict(modules())
    graph = {
        name: {m for m in imported(path) if m in names and m != name}
        for name, path in names.items()
    }
    assert circle(graph) is None


def test_folders_of_a_layer_import_each_other_one_way_only():
    """Two folders may be beside each other; then one of them is the ground."""
    homes = [home for names in LAYERS for home in names]
    graph = {home: set() for home in homes}
    for name, path in modules():
        for home in homes:
            if within(name, [home]):
                known = {h for h in homes for m in imported(path) if within(m, [h])}
                graph[home] |= known - {home}
    assert circle(graph) is None


def test_a_circle_is_found():
    assert circle({"cli": {"bench"}, "bench": {"cli"}}) == ["bench", "cli", "bench"]
    assert circle({"cli": set(), "bench": {"cli"}, "tune": {"cli", "bench"}}) is None


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_do_not_know_each_other(name):
    found = [path for module, path in modules() if within(module, [name])]
    assert found
    for path in found:
        known = {m for m in imported(path) if within(m, NEIGHBOURS[name])}
        assert known <= EXCEPT.get(name, set()), path


def test_imports_are_absolute():
    for name, path in modules():
        nodes = ast.walk(ast.parse(path.read_text()))
        relative = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, name


def test_only_the_dispatcher_asks_for_the_platform():
    asking = {
        name
        for name, path in modules()
        if ASKS_FOR_THE_PLATFORM.search(path.read_text())
        and within(name, ["pallas_kernels", "jaxspec.models"])
    }
    assert asking == {"pallas_kernels._dispatch"}
