"""Names in the docs are public, and public names are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Each package, and the page that lists its names.
PACKAGES = {
    "dynamometer.errors": "metrics-api.md",
    "dynamometer.exposition": "metrics-api.md",
    "dynamometer.metrics": "metrics-api.md",
    "dynamometer.multiprocess": "multiprocess.md",
    "dynamometer.runtime": "metrics-api.md",
}
TEACHING = [
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
]


def listed(package: str) -> list[str]:
    """Return a package's names in the table below the line that begins with `From`."""
    page = (DOCS / PACKAGES[package]).read_text(encoding="utf-8")
    table = re.split(rf"(?m)^.*From `{re.escape(package)}`", page)[1].split("\n| ", 1)[1]
    return re.findall(r"(?m)^\| `(\w+)` \| \S", table.split("\n\n")[0])


def public(package: str) -> Iterator[tuple[str, object]]:
    """Return the public names of a package, and the methods of its classes."""
    module = importlib.import_module(package)
    for name in module.__all__:
        found = getattr(module, name)
        yield name, found
        for method, function in vars(found).items() if inspect.isclass(found) else ():
            if not method.startswith("_") or method == "__init__":
                yield f"{name}.{method}", getattr(function, "fget", function)


def imports(path: Path) -> list[tuple[str, str]]:
    """Return the modules and names of this project that a page or a program imports."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        statement = r"(?m)^[ >]*((?:from|import) dynamometer[\w.]*(?: import (?:\([^)]*\)|.*))?)$"
        text = "\n".join(textwrap.dedent(one) for one in re.findall(statement, text))
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynamometer"):
            found += [(node.module or "", alias.name) for alias in node.names]
        if isinstance(node, ast.Import):
            found += [(a.name, "") for a in node.names if a.name.split(".")[0] == "dynamometer"]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_docs_list_the_public_names(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert listed(package) == sorted(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", TEACHING, ids=lambda path: path.name)
def test_docs_and_examples_import_only_public_names(path: Path) -> None:
    for module, name in imports(path):
        assert module in PACKAGES, f"{path.name} imports {module}"
        assert name in importlib.import_module(module).__all__, f"{path.name}: {module}.{name}"


def test_imports_of_docs_are_found() -> None:
    found = {module for path in TEACHING for module, _ in imports(path)}
    assert found == PACKAGES.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_described(package: str) -> None:
    for name, found in public(package):
        if inspect.isroutine(found) and not name.startswith("MetricsSource.__"):
            assert inspect.getdoc(found), name
        elif inspect.isclass(found):
            assert found.__doc__, name
        annotations = getattr(found, "__annotations__", {})
        assert "Any" not in re.findall(r"\w+", str(annotations)), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_name_is_the_usual_error(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        getattr(module, "nothing")  # noqa: B009  # a name that no checker would take
    with pytest.raises(ImportError):
        exec(f"from {package} import nothing")


@pytest.mark.parametrize(
    "package", ["dynamometer.exposition", "dynamometer.metrics", "dynamometer.runtime"]
)
def test_a_package_is_imported_without_prometheus_client(package: str) -> None:
    """A process may need to set a variable before prometheus_client is imported."""
    program = f"import sys, {package}; assert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_documented_source_is_on_the_page() -> None:
    page = (DOCS / "metrics-api.md").read_text(encoding="utf-8")
    (program,) = [
        one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Disks" in one
    ]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "disks_free_bytes 5\n" in done.stdout
