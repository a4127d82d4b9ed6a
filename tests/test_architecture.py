"""The floors of ARCHITECTURE.md: every import goes down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "dynamometer"

# From the top; a room may import from itself and from the floors below it.
FLOORS = (
    {"__main__", "sglang", "frontend.__main__", "mocker.__main__"},
    {"cli"},
    {"demo"},
    {"frontend", "worker", "exporter", "mocker", "tiny_model"},
    {"engines"},
    {"runtime"},
    {"http"},
    {"metrics"},
    {"multiprocess"},
    {"exposition"},
    {"process"},
    {"arguments", "logs"},
    {"settings", "names"},
    {"variables"},
    {"errors", "public", "__init__"},
)
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def room(module: str) -> str:
    """`frontend.app` is in the room `frontend`."""
    return module if module in FLOORS[0] else module.split(".")[0] or "__init__"


def floor(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room(module) in rooms:
            return number
    raise AssertionError(f"{module} is in no room: give it a floor, here and in ARCHITECTURE.md")


def imports(path: Path) -> set[str]:
    """The modules of ours that a module imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            packages = ("dynamometer", "dynamometer.engines")
            found |= members if node.module in packages else {node.module}
    names = {
        name.removeprefix("dynamometer").removeprefix(".")
        for name in found
        if name.split(".")[0] == "dynamometer"
    }
    return {name if not name.startswith("__version__") else "__init__" for name in names}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path: Path) -> None:
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for imported in imports(path):
        if room(imported) != room(module):
            assert floor(imported) > floor(module), f"{module} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_the_cpu_platform_imports_the_engine(path: Path) -> None:
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.split(".")[0] in ("sglang", "torch", "tokenizers", "safetensors"):
                assert path.parts[:2] == ("engines", "sglang_cpu")


# Their subject is one engine: what is run by name, the demo, the simulated engine, the tiny model.
OF_AN_ENGINE = {"sglang", "cli", "demo", "mocker", "tiny_model", "engines"}
# NVIDIA Dynamo's own list of name prefixes; the one table of all environment variables.
NAMES_AN_ENGINE = {"names", "variables"}
ENGINE_MODULES = re.compile(r"engines\.(sglang\w*|mocker)(\.|$)")


def without_docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, described) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return (node for node in ast.walk(tree) if id(node) not in docstrings)


def names_of(node: ast.AST) -> Iterator[str]:
    """Identifiers and texts of a node itself."""
    for _, value in ast.iter_fields(node):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str | bytes):
                yield part if isinstance(part, str) else part.decode("latin-1")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_what_differs_between_engines_is_in_their_room(path: Path) -> None:
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    if module.split(".")[0] in OF_AN_ENGINE:
        return
    assert not [name for name in imports(path) if ENGINE_MODULES.match(name)]
    if module in NAMES_AN_ENGINE:
        return
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    for node in without_docstrings(tree):
        for name in names_of(node):
            assert "sglang" not in name.lower(), f"{path}, line {getattr(node, 'lineno', '?')}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_holds_one_concept(path: Path) -> None:
    """Over 400 lines it holds two."""
    assert len((SOURCE / path).read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_discovery_is_made_by_its_factory(path: Path) -> None:
    """Nothing outside of `runtime.discovery` knows which variant it has."""
    if path.parent != Path("runtime/discovery"):
        own = {name for name in imports(path) if name.startswith("runtime.discovery")}
        assert own <= {f"runtime.discovery{end}" for end in ("", ".interface", ".follower")}
