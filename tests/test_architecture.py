"""The map of ARCHITECTURE.md.

Imports go down the floors and form no circle; each module has a noun of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "dynamometer"

# From the top; a room may import from itself and from the floors below it.
FLOORS = (
    {"__main__", "sglang", "frontend.__main__", "mocker.__main__"},
    {"cli"},
    {"demo", "drain"},
    {"frontend", "worker", "exporter", "mocker", "tiny_model", "observability"},
    {"engines"},
    {"runtime"},
    {"http"},
    {"metrics"},
    {"multiprocess"},
    {"exposition"},
    {"process"},
    {"arguments", "logs"},
    {"settings", "names", "panels"},
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


def module_name(path: Path) -> str:
    """Return `frontend.app` for `frontend/app.py`, and `frontend` for `frontend/__init__.py`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, source: Path = SOURCE) -> set[str]:
    """Return the modules of the package that a module imports, without the package's name.

    Every import statement counts: those under `TYPE_CHECKING` and inside functions, too.
    """
    found = set()
    for node in ast.walk(ast.parse((source / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            directory = source.parent / node.module.replace(".", "/")
            for alias in node.names:
                member = directory / alias.name
                submodule = member.is_dir() or member.with_suffix(".py").exists()
                found.add(f"{node.module}.{alias.name}" if submodule else node.module)
    return {
        name.removeprefix("dynamometer").removeprefix(".") or "__init__"
        for name in found
        if name.split(".")[0] == "dynamometer"
    }


def test_the_map_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^### `(\w+)/`:.*?\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL))
    named = {name: set(re.findall(r"`(\w+)`", listed)) for name, listed in lists.items()}
    modules: dict[str, set[str]] = {name: set() for name in named}
    for path in MODULES:
        if len(path.parts) > 1 and not path.stem.startswith("__"):
            modules.setdefault(path.parts[0], set()).add(path.stem)
    missing = {name: found - named.get(name, set()) for name, found in modules.items()}
    assert not {name: found for name, found in missing.items() if found}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
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


# Rooms whose subject is one engine: entry points, the demo, the simulated engine, the tiny model.
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
    """Return the identifiers and strings of a node, without those of its children."""
    for _, value in ast.iter_fields(node):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str | bytes):
                yield part if isinstance(part, str) else part.decode("latin-1")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_what_differs_between_engines_is_in_their_room(path: Path) -> None:
    module = module_name(path)
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
def test_a_discovery_is_made_by_its_factory(path: Path) -> None:
    """No module outside `runtime.discovery` depends on a variant."""
    if path.parent != Path("runtime/discovery"):
        own = {name for name in imports(path) if name.startswith("runtime.discovery")}
        assert own <= {f"runtime.discovery{end}" for end in ("", ".interface", ".follower")}


def circles(source: Path) -> dict[str, list[str]]:
    """Return the modules of each room that import each other in a circle.

    The packages that an import runs on its way (`a` in `import a.b`) are not counted.
    """
    paths = [path.relative_to(source) for path in source.rglob("*.py")]
    imported = {module_name(path): imports(path, source) for path in paths}
    found: dict[str, list[str]] = {}
    for module in sorted(imported):
        top = module.split(".")[0]
        reached: set[str] = set()
        pending = [module]
        while pending:
            for target in imported.get(pending.pop(), set()) - reached:
                if target.split(".")[0] == top:
                    reached.add(target)
                    pending.append(target)
        if module in reached:
            found.setdefault(top, []).append(module)
    return found


def test_no_room_has_an_import_circle() -> None:
    assert circles(SOURCE) == {}


# The same part in each room, and the entry points of `python -m dynamometer.…`.
NOT_A_NOUN = {"app", "command", "interface", "__init__", "__main__"}
ENTRY_POINTS = {"sglang", "tiny_model"}
# An ending of a noun, and the ending of its stem.
ENDINGS = {
    r"name$": "",
    r"ies$": "y",
    r"(s|sh|ch|x)es$": r"\1",
    r"(?<![su])s$": "",
    r"(ing|ion|er|or|ed|e)$": "",
}


def stem(word: str) -> str:
    """Return the common part of the forms of a word: `read` for `reader` and `reading`."""
    for ending, short in ENDINGS.items():
        stemmed = re.sub(ending, short, word)
        if stemmed != word and len(stemmed) >= 3:
            return stem(stemmed)
    return word


def noun(module: str) -> str:
    """Return the noun of a module; a compound name (`http_source`) is one noun."""
    return "_".join(stem(word) for word in module.split(".")[-1].split("_"))


def shared_nouns(source: Path) -> dict[str, list[str]]:
    """Return the nouns that several modules have, with their modules."""
    found: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        module = module_name(path.relative_to(source))
        if path.stem not in NOT_A_NOUN and module not in ENTRY_POINTS:
            found.setdefault(noun(module), []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_no_two_modules_have_one_noun() -> None:
    assert shared_nouns(SOURCE) == {}


# The checks themselves, on a small package that is written for the test.


def write_package(root: Path, modules: dict[str, str]) -> Path:
    """Write the texts of modules, such as `frontend/app`, and return the package's directory."""
    source = root / "dynamometer"
    for name, text in modules.items():
        path = source / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return source


@pytest.mark.parametrize(
    "closing",
    [
        "import dynamometer.room.one",
        "from dynamometer.room import one",
        "from dynamometer.room.one import name",
        "if TYPE_CHECKING:\n    from dynamometer.room.one import Name",
        "def function():\n    from dynamometer.room import one",
    ],
)
def test_any_import_statement_can_close_a_circle(tmp_path: Path, closing: str) -> None:
    modules = {
        "room/one": "from dynamometer.room import two",
        "room/two": "from dynamometer.room.three import name",
        "room/three": "import os",
        "room/outside": "from dynamometer.room import one",
    }
    assert circles(write_package(tmp_path, modules)) == {}
    source = write_package(tmp_path, {"room/three": closing})
    assert circles(source) == {"room": ["room.one", "room.three", "room.two"]}


def test_a_module_and_the_face_of_its_package_can_form_a_circle(tmp_path: Path) -> None:
    source = write_package(tmp_path, {"room/one": "from dynamometer.room import name"})
    assert circles(source) == {}
    write_package(tmp_path, {"room/__init__": "from dynamometer.room.one import Name"})
    assert circles(source) == {"room": ["room", "room.one"]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("page", "pages"),
        ("family", "families"),
        ("process", "processes"),
        ("status", "statuses"),
        ("file", "filename"),
        ("files", "filename"),
        ("reader", "reading"),
        ("order", "ordering"),
        ("build", "builder"),
        ("parse", "parsers"),
        ("collector", "collection"),
        ("http_source", "http_sources"),
    ],
)
def test_forms_of_one_noun_are_found(tmp_path: Path, one: str, other: str) -> None:
    source = write_package(tmp_path, {f"room/{one}": "", f"another/inner/{other}": ""})
    assert shared_nouns(source) == {noun(one): [f"another.inner.{other}", f"room.{one}"]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http_source", "source"),
        ("merged_page", "page"),
        ("load_signals", "signals"),
        ("tokens", "totals"),
        ("record", "reader"),
        ("servers", "series"),
    ],
)
def test_other_nouns_are_not_one(tmp_path: Path, one: str, other: str) -> None:
    source = write_package(tmp_path, {f"room/{one}": "", f"another/{other}": ""})
    assert shared_nouns(source) == {}


def test_parts_of_each_room_and_entry_points_may_share_a_name(tmp_path: Path) -> None:
    names = [f"{place}/{name}" for place in ("room", "another") for name in NOT_A_NOUN]
    names += ["sglang", "engines/sglang", "tiny_model", "engines/tiny_model"]
    assert shared_nouns(write_package(tmp_path, dict.fromkeys(names, ""))) == {}
    source = write_package(tmp_path, {"room/sglang": ""})
    assert shared_nouns(source) == {noun("sglang"): ["engines.sglang", "room.sglang"]}
