"""Imports go down only and never in a circle, files and functions stay short; all of it read from the source."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("jaxrl", "models", "rollouts", "sandbox")

# What each place may import, and with it everything that this may import. A place is a package below jaxrl or rollouts,
# the modules of a package that stand beside those, or a single module.
ARROWS: dict[str, tuple[str, ...]] = {
    "sandbox": (),
    "models": (),
    "rollouts": ("models", "sandbox"),
    "rollouts.jax": ("rollouts",),
    "rollouts.vllm": ("rollouts",),
    "rollouts.environments": ("rollouts",),
    "jaxrl.errors": (),  # see EXCEPTIONS
    "jaxrl.files": ("jaxrl.errors",),
    "jaxrl.config": ("jaxrl.errors", "models.config"),
    # An objective names the heads that it needs beside the decoder.
    "jaxrl.algorithms": ("jaxrl.config", "rollouts.episode", "models.heads"),
    # A task states what its judge needs (services), and may choose its environment.
    "jaxrl.tasks": (
        "jaxrl.config",
        "jaxrl.files",
        "rollouts.episode",
        "rollouts.services",
        "rollouts.chat",
        "rollouts.template",
        "rollouts.environments",
        "sandbox",
    ),
    "jaxrl.costs": ("jaxrl.config", "rollouts.episode", "models"),
    "jaxrl.distributed": ("jaxrl.config", "rollouts", "models"),
    "jaxrl.runs": ("jaxrl.tasks", "jaxrl.distributed", "jaxrl.costs", "rollouts.jax", "rollouts.vllm"),
    "jaxrl.evaluation": ("jaxrl.runs", "jaxrl.tasks"),
    "jaxrl.training": ("jaxrl.evaluation", "jaxrl.runs", "jaxrl.algorithms"),
    "jaxrl.aot": ("jaxrl.training", "jaxrl.runs"),
    # Reports are written where there may be no JAX: no engine, no policy.
    "jaxrl.reports": ("jaxrl.files", "jaxrl.costs", "jaxrl.evaluation.estimators", "models"),
    "jaxrl.studies": ("jaxrl.reports", "jaxrl.runs"),
    # One command never imports another: what two of them need belongs in a package.
    "commands": ("jaxrl.studies", "jaxrl.reports", "jaxrl.aot", "jaxrl.evaluation", "jaxrl.training"),
}

# Only inside a function that runs after something has failed: the one main() wrapper names the exceptions of the
# packages below, which are one line for the user too. Nobody may import them through it.
EXCEPTIONS = ("models", "rollouts", "rollouts.vllm", "sandbox")

# Imports of today that break the rules: module, what it imports. May only shrink.
TODAY: tuple[tuple[str, str], ...] = ()

FILE_LINES, FUNCTION_LINES = 500, 60
# Files and functions of today that are longer. May only shrink.
LONG: tuple[str, ...] = ()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for room in PACKAGES for path in sorted((ROOT / room).rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """Modules, ours and others, that a file imports, also in functions; of `from a import b` a.b if that is one."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            names |= {name if name in MODULES else str(node.module) for name in whole}
    return names


GRAPH = {module: imported(path) & MODULES.keys() - {module} for module, path in MODULES.items()}


def place_of(module: str) -> str:
    """Of a module of ours, as in ARROWS; a command stands directly in jaxrl, or is the sidecar's."""
    parts = module.split(".")
    package = ".".join(parts[:2])
    if package in ARROWS:
        return package
    if module == "rollouts.sidecar" or (parts[0] == "jaxrl" and module != "jaxrl"):
        return "commands"
    return parts[0]


@cache
def may_import(place: str) -> frozenset[str]:
    """Places and modules that it may import."""
    below = ARROWS.get(place, ())
    return frozenset({place, *below}.union(*(may_import(name) for name in below)) - {"commands"})


def breaks_the_rules(module: str, other: str) -> bool:
    place = place_of(module)
    if place == "jaxrl.errors":
        return place_of(other) not in EXCEPTIONS
    return not {other, place_of(other)} & may_import(place)


def test_imports_go_down():
    broken = {(module, other) for module in GRAPH for other in GRAPH[module] if breaks_the_rules(module, other)}
    assert sorted(broken - {*TODAY}) == []
    assert sorted({*TODAY} - broken) == [], "no longer needed in TODAY"


def test_no_import_is_circular():
    """Neither between modules nor between places."""
    places = defaultdict(set)
    for module, others in GRAPH.items():
        places[place_of(module)] |= {place_of(other) for other in others} - {place_of(module)}
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which lists the cycle
    TopologicalSorter(places).prepare()


def test_the_packages_below_are_named_after_a_failure_only():
    top = {id(node) for node in tree_of(MODULES["jaxrl.errors"]).body}
    for node in ast.walk(tree_of(MODULES["jaxrl.errors"])):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
            assert id(node) not in top


def test_every_place_is_there():
    assert {place_of(module) for module in MODULES} - {"jaxrl"} <= ARROWS.keys()
    assert len(MODULES) > 100


@pytest.mark.parametrize("path", sorted((ROOT / "sandbox").rglob("*.py")), ids=lambda p: p.name)
def test_the_sandbox_needs_the_standard_library_only(path):
    assert {name.split(".")[0] for name in imported(path)} <= set(sys.stdlib_module_names) | {"sandbox", "ray"}


def test_files_and_functions_are_short():
    hostile = ROOT / "tests" / "sandbox" / "hostile"  # programs made to break what reads them
    long = set()
    for path in (p for room in (*PACKAGES, "tests", "benchmarks", "configs") for p in (ROOT / room).rglob("*.py")):
        if path.is_relative_to(hostile):
            continue
        name = str(path.relative_to(ROOT))
        if len(path.read_text().splitlines()) > FILE_LINES:
            long.add(name)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                    long.add(f"{name}:{node.name}")
    assert sorted(long - {*LONG}) == []
    assert sorted({*LONG} - long) == [], "no longer needed in LONG"
