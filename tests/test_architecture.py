"""The floors of ARCHITECTURE.md: every import goes down."""

from __future__ import annotations

import ast
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
    {"errors", "__init__"},
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
            ours = node.module == "dynamometer"
            found |= members if ours else {node.module}
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


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_holds_one_concept(path: Path) -> None:
    """Over 400 lines it holds two."""
    assert len((SOURCE / path).read_text(encoding="utf-8").splitlines()) <= 400
