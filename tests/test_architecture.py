"""Imports run one way, ``cli → evaluation → lcm_arith``, and the command line starts light."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import lcm_arith

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "lcm_arith": "lcm_arith",
    "lcm_arith.cli": "cli",
    "lcm_arith.evaluation": "evaluation",
    "lcm_arith.recipes": "recipes",
}
HEAVY = (
    "accelerate",
    "diffusers",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "PIL",
    "safetensors.numpy",
    "safetensors.torch",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
)
TERMINAL = ("matplotlib", "pandas", "rich", "typer")


@dataclass(frozen=True)
class Import:
    """One imported module; ``at_start`` if importing the importer runs it."""

    module: str
    line: int
    at_start: bool


def python_files(folder: Path) -> Iterator[Path]:
    for at, subfolders, names in os.walk(folder):  # does not follow lcm_arith/{cli,…}
        subfolders[:] = sorted(set(subfolders) - {"__pycache__"})
        yield from (Path(at, name) for name in sorted(names) if name.endswith(".py"))


@cache
def modules() -> dict[str, Path]:
    """Dotted name as installed → file, for everything that installs."""
    return {
        ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for package, folder in FOLDERS.items()
        for path in python_files(ROOT / folder)
    }


def part_of(module: str) -> str:
    """The longest of ``FOLDERS`` that holds ``module``."""
    return max((p for p in FOLDERS if is_in(module, p)), key=len)


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@cache
def imports(path: Path, module: str) -> tuple[Import, ...]:
    """Every import of a file, those inside functions and ``TYPE_CHECKING`` blocks included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")).body, package, True))


def _imports(nodes: list[ast.stmt], package: str, at_start: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield Import(source, node.lineno, at_start)
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (
                Import(name, node.lineno, at_start)
                for name in names
                if name in modules() or not is_in(name, "lcm_arith")
            )
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.body, package, False)
            yield from _imports(node.orelse, package, at_start)
        else:
            runs_now = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                statements = [child] if isinstance(child, ast.stmt) else _statements(child)
                yield from _imports(statements, package, runs_now)


def _statements(node: ast.AST) -> list[ast.stmt]:
    """Statements of an ``except`` or ``case`` block, which are no statements themselves."""
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def offenders(parts: set[str], *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for module, path in modules().items()
        if part_of(module) in parts and module != "lcm_arith.__main__"  # the way in
        for found in imports(path, module)
        if is_in(found.module, *forbidden)
    ]


def heavy_chain(module: str, seen: set[str]) -> list[str]:
    """How importing ``module`` reaches a heavy library, as a list of names; empty if it does not.

    Importing ``a.b.c`` runs ``a`` and ``a.b`` too. ``seen`` grows by the modules looked into.
    """
    if is_in(module, *HEAVY):
        return [module]
    names = module.split(".")
    for name in (".".join(names[: i + 1]) for i in range(len(names))):
        if name in modules() and name not in seen:
            seen.add(name)
            for found in imports(modules()[name], name):
                if found.at_start and (rest := heavy_chain(found.module, seen)):
                    return [name, *rest]
    return []


def test_the_library_imports_neither_evaluation_nor_cli() -> None:
    assert not offenders({"lcm_arith", "lcm_arith.recipes"}, "lcm_arith.evaluation")
    assert not offenders({"lcm_arith", "lcm_arith.recipes"}, "lcm_arith.cli")


def test_evaluation_does_not_import_cli() -> None:
    assert not offenders({"lcm_arith.evaluation"}, "lcm_arith.cli")


def test_root_folders_are_imported_by_their_installed_names() -> None:
    assert not offenders(set(FOLDERS), "cli", "evaluation", "recipes", "tests", "tools")


@pytest.mark.parametrize("library", TERMINAL)
def test_the_library_knows_no_terminal_table_or_plot(library: str) -> None:
    assert not offenders({"lcm_arith", "lcm_arith.recipes"}, library)


def test_nobody_imports_click() -> None:
    everywhere = (*FOLDERS.values(), "tests", "tools", "benchmarks")
    guilty = [
        f"{path.relative_to(ROOT)}:{found.line}"
        for folder in everywhere
        for path in python_files(ROOT / folder)
        for found in imports(path, path.stem)
        if is_in(found.module, "click", "typer._click")
    ]
    assert not guilty


@pytest.mark.parametrize("module", sorted(m for m in modules() if is_in(m, "lcm_arith.cli")))
def test_command_modules_import_nothing_heavy_at_the_top(module: str) -> None:
    assert " → ".join(heavy_chain(module, set())) == ""


def test_every_public_name_resolves() -> None:
    assert all(getattr(lcm_arith, name) is not None for name in lcm_arith.__all__)
    assert len(set(lcm_arith.__all__)) == len(lcm_arith.__all__)


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path) -> None:
    source = """
import a.b, c
from d import e
if TYPE_CHECKING:
    import f
else:
    import g
try:
    import h
except ImportError:
    import i
class K:
    import j
    def m(self):
        with open("x"):
            import k
match 1:
    case 1:
        from . import l
"""
    path = tmp_path / "module.py"
    path.write_text(source)
    found = imports(path, "pkg.module")
    at_start = {each.module for each in found if each.at_start}
    assert at_start == {"a.b", "c", "d", "d.e", "g", "h", "i", "j", "pkg", "pkg.l"}
    assert {each.module for each in found} - at_start == {"f", "k"}
