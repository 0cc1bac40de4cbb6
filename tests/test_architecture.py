"""The order of the house: what may import what, who writes to disk, and how long things may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "evorefuse"
ROOMS = (
    "records", "ports", "stats", "licence", "dedupe", "store", "responses", "ledger", "sampling", "prompts",
    "structured", "progress", "evolve", "lm", "mutator", "scorer", "fitness", "source", "embedder", "tracker", "page",
    "checkup", "stages", "signature", "roles", "compose", "estimate", "run",
)  # fmt: skip
PLUGINS = ("lm", "mutator", "scorer", "fitness", "source", "embedder", "tracker")
SIDEWAYS = (*PLUGINS, "stages")  # files of stages do not import each other either

# Heavy libraries, and who may import them.
HEAVY = {
    "torch": ("lm/", "embedder/", "checkup/", "stages/mitigate.py", "stages/attribute.py", "stages/throughput.py"),
    "transformers": ("lm/", "embedder/", "stages/mitigate.py", "stages/attribute.py", "stages/throughput.py"),
    "peft": ("lm/", "stages/mitigate.py"),
    "trl": ("stages/mitigate.py",),
    "accelerate": ("stages/mitigate.py",),
    "datasets": ("source/hub.py", "stages/mitigate.py"),
    "vllm": ("lm/vllm.py",),
    "openai": ("lm/openai.py",),
    "wandb": ("tracker/wandb.py",),
    "matplotlib": ("page/", "stages/report.py", "stages/attribute.py"),
    "huggingface_hub": ("page/publish.py", "stages/publish.py"),
    "sklearn": ("stages/mine.py",),
    "datasketch": ("dedupe.py",),
    "hydra": ("run.py",),
    "omegaconf": ("run.py",),
}
# Who may write to disk besides store.py, and why.
WRITERS = {
    "responses.py": "the response cache, one SQLite file for all processes, and the locks beside it",
    "run.py": "a dry run works in a temporary folder",
    "tracker/": "dashboards keep their own files",
    "lm/embedded.py": "converts the embedded model once into the cache folder",
    "stages/mitigate.py": "the trainer writes its checkpoints and adapter itself",
}
WRITING_CALLS = {
    "write_text", "write_bytes", "touch", "mkdir", "makedirs", "unlink", "rmdir", "rename", "symlink_to", "rmtree",
    "copy", "copyfile", "copytree", "move", "mkdtemp", "TemporaryDirectory", "NamedTemporaryFile", "save_pretrained",
    "save_file", "save_model", "savez", "dump", "remove", "removedirs",
}  # fmt: skip
# Methods of these receivers write through the store, or not to disk at all.
INNOCENT_RECEIVERS = {"store", "dict", "list"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


TREES = {name_of(path): ast.parse(path.read_text("utf-8")) for path in files(PACKAGE)}
each_file = pytest.mark.parametrize("name", TREES)


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names that an import statement may load; of `from a import b` both a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(tree: ast.AST) -> set[str]:
    return {name for node in ast.walk(tree) for name in imported(node)}


def module_file(dotted: str) -> str | None:
    """The file of the package that an imported name lives in."""
    parts = dotted.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        stem = "/".join(parts[:end])
        for candidate in (f"{stem}.py", f"{stem}/__init__.py", "__init__.py" if not stem else ""):
            if candidate in TREES:
                return candidate
    return None


def edges(name: str) -> set[str]:
    """The files of the package that a file imports."""
    found = {module_file(own) for own in all_imports(TREES[name]) if own.split(".")[0] == "evorefuse"}
    return {own for own in found if own is not None} - {name}


def room(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def test_every_file_is_in_a_room():
    assert {room(name) for name in TREES} - {*ROOMS, "data", "__init__"} == set()


@each_file
def test_imports_go_up_the_list_only(name):
    if room(name) == "__init__":
        assert edges(name) == set()
        return
    for other in edges(name) - {"__init__.py"}:
        if room(other) != room(name):
            assert ROOMS.index(room(other)) < ROOMS.index(room(name)), f"{name} imports {other}"
            assert not (room(name) in PLUGINS and room(other) in PLUGINS), f"{name} imports {other} sideways"


@each_file
def test_stages_do_not_import_each_other(name):
    if room(name) == "stages":
        assert {other for other in edges(name) if room(other) == "stages"} <= {"stages/__init__.py"}


def test_records_imports_the_standard_library_alone():
    import sys

    assert {own.split(".")[0] for own in all_imports(TREES["records.py"])} <= set(sys.stdlib_module_names)


def test_there_is_no_cycle():
    graph = {name: edges(name) for name in TREES}
    while free := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in free:
            del graph[name]
    assert graph == {}


@each_file
def test_nothing_is_imported_inside_a_function(name):
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [own for function in functions for own in all_imports(function)] == []


@each_file
def test_heavy_libraries_are_imported_where_they_are_needed_only(name):
    for own in all_imports(TREES[name]):
        allowed = HEAVY.get(own.split(".")[0])
        assert allowed is None or name.startswith(allowed), f"{name} imports {own}"


def receiver(call: ast.Call) -> str:
    """The last name before the method: `store` in `self.store.write_text`."""
    value = call.func.value if isinstance(call.func, ast.Attribute) else None
    return getattr(value, "id", getattr(value, "attr", "")) if value is not None else ""


def writes(tree: ast.AST) -> list[str]:
    """The calls that open a file for writing or change the disk."""
    found: list[str] = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called == "open":
            method = isinstance(call.func, ast.Attribute) and receiver(call) not in ("io", "gzip", "builtins")
            given = [*call.args[0 if method else 1 :], *(k.value for k in call.keywords if k.arg == "mode")]
            modes = [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            found += [f"line {call.lineno}: open {mode}" for mode in modes if re.search("[wax+]", mode)]
        elif called in WRITING_CALLS and receiver(call) not in INNOCENT_RECEIVERS:
            found.append(f"line {call.lineno}: {called}")
    return found


@each_file
def test_only_the_store_writes_to_disk(name):
    if name != "store.py" and not name.startswith(tuple(WRITERS)):
        assert writes(TREES[name]) == []


def test_the_check_on_writing_sees_the_store():
    assert {line.split(": ")[1] for line in writes(TREES["store.py"])} >= {"open w", "open a", "open wb", "mkdir"}
    assert writes(ast.parse("open(x, mode='w'); p.open('r'); p.open(); p.write_text(t); store.write_text(n, t)")) == [
        "line 1: open w",
        "line 1: write_text",
    ]


PYTHON = [*files(PACKAGE), *files(REPO / "tests"), *files(REPO / "experiments")]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(REPO).as_posix())
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text("utf-8").splitlines()) <= 300


@each_file
def test_no_function_is_longer_than_50_lines(name):
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {own: length for own, length in lengths.items() if length > 50} == {}


@each_file
def test_nothing_is_pickled(name):
    picklers = ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    assert not [own for own in all_imports(TREES[name]) if own.split(".")[0] in picklers]
    for call in (node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)):
        dotted = ast.unparse(call.func)
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert dotted not in ("torch.save", "np.save"), f"{name}:{call.lineno} pickles"
        assert dotted != "torch.load" or options.get("weights_only") == "True", f"{name}:{call.lineno} unpickles"
        assert options.get("allow_pickle") in (None, "False"), f"{name}:{call.lineno} unpickles"


@each_file
def test_names_say_what_things_are(name):
    assert not {*name.removesuffix(".py").split("/")} & {"utils", "util", "helpers", "manager", "misc", "common"}
    bases = [
        ast.unparse(base) for node in ast.walk(TREES[name]) if isinstance(node, ast.ClassDef) for base in node.bases
    ]
    assert not [base for base in bases if base.endswith(("ABC", "Base", "Mixin"))]


SHIPPED = [path for folder in ("evorefuse", "conf", "experiments") for path in sorted((REPO / folder).rglob("*"))]
SHIPPED = [path for path in SHIPPED if path.suffix in (".py", ".yaml", ".j2", ".md", ".js", ".css")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(REPO).as_posix())
def test_nothing_is_left_to_do_and_no_remote_code_is_trusted(path):
    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b|trust_remote_code\s*[=:]\s*[Tt]rue", path.read_text("utf-8")) == []
