"""The layers import each other downwards only."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = [  # lowest first; a module may import from its own layer and from those below
    ["pallas_kernels"],
    ["jaxspec.checks", "jaxspec.compilation", "jaxspec.core", "jaxspec.digests"]
    + ["jaxspec.files", "jaxspec.mesh", "jaxspec.rows", "jaxspec.sampling"]
    + ["jaxspec.text", "jaxspec.tokenizer_files", "jaxspec.trees"],
    ["jaxspec.models", "jaxspec.drafting", "jaxspec.verification", "checkpoints_conv"],
    ["jaxspec.checkpointing", "jaxspec.decode_state", "jaxspec.decoding"]
    + [
        "jaxspec.host_decoding",
        "jaxspec.loop_checks",
        "jaxspec.metrics",
        "jaxspec.plotting",
    ]
    + ["jaxspec.pretrained", "jaxspec.sharding"],
    ["jaxspec.assets", "jaxspec.bench", "jaxspec.cli", "jaxspec.train"]
    + ["jaxspec.tune"],
]
DRAFTS = ["jaxspec.drafting", "jaxspec.verification"]
NEIGHBOURS = {  # a module, and what it knows nothing of
    "jaxspec.decoding": ["jaxspec.models", *DRAFTS],
    "jaxspec.decode_state": ["jaxspec.models", *DRAFTS],
    "jaxspec.host_decoding": ["jaxspec.models", *DRAFTS],
    "jaxspec.models": [*DRAFTS, "checkpoints_conv"],
    "checkpoints_conv": ["jaxspec"],
}
EXCEPT = {  # what it knows nevertheless
    "jaxspec.decoding": {"jaxspec.verification.sample_and_match"},  # the default
    "jaxspec.host_decoding": {"jaxspec.verification.sample_and_match"},
    # A record of numbers, and files as such.
    "checkpoints_conv": {"jaxspec.models.config", "jaxspec.digests", "jaxspec.files"}
    | {"jaxspec.tokenizer_files"},
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


def test_there_are_no_cycles():
    names = dict(modules())
    graph = {
        name: {m for m in imported(path) if m in names and m != name}
        for name, path in names.items()
    }
    done, trail = set(), []

    def visit(name):
        assert name not in trail, f"cycle: {' -> '.join([*trail, name])}"
        if name not in done:
            trail.append(name)
            for other in graph[name]:
                visit(other)
            done.add(trail.pop())

    for name in graph:
        visit(name)


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
