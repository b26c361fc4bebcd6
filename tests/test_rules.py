"""The rules of the house, read off the source: who may import whom, and what no module does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# who may import whom: a room sees those above it
FREE = (
    *("errors", "files", "processes", "progress", "saying", "settings", "cluster"),
    *("roles", "serving", "config", "records"),
)
ROOMS = (
    *("store", "registry", "video", "endpoint", "policy", "judge", "reward", "phase_one", "preferences", "steer"),
    *("phase_two", "feedback", "vllm_plugin", "service", "gateway", "agent", "evaluation"),
    *("lineage", "erasure", "audit"),
    *("world", "profiles"),
)
# where the parts are put together, the lower first
COMPOSED = ("backends", "stages", "loop", "entry", "cli", "commands")
ORDER = (*FREE, *ROOMS, *COMPOSED)
KNOW_THE_WORLD = ("backends", "loop", "entry", "cli")
UNSAFE = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


LIBRARY = sources("taskmem")
OURS = sources("taskmem", "pipelines", "components", "benchmarks", "tools")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, anywhere in it, as written; a relative import starts with a dot."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            if module == "taskmem":
                yield from (f"taskmem.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(ROOT / "taskmem").parts[0].removesuffix(".py")


def rooms_used(path: Path) -> set[str]:
    used = {module.split(".")[1] for module in imports(path) if module.startswith("taskmem.")}
    return used - {room(path)}


def packages(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def yaml_loads(path: Path) -> list[ast.Call]:
    loading = ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).startswith(loading)]


def safe_loaders(module: ast.Module) -> set[str]:
    """The names of yaml's safe loaders, and of the module's own classes built on them."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    classes = [node for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    return safe | {node.name for node in classes if safe & {ast.unparse(base) for base in node.bases}}


def at_import(module: ast.Module) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything but the bodies of functions."""
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += getattr(node, "decorator_list", [])
            waiting += [default for default in (*node.args.defaults, *node.args.kw_defaults) if default]
        else:
            yield node
            waiting += ast.iter_child_nodes(node)


def test_there_is_something_to_read() -> None:
    assert len(LIBRARY) > 50
    assert {path.parts[len(ROOT.parts)] for path in OURS} >= {"taskmem", "pipelines", "benchmarks"}


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(path) for path in LIBRARY} - {"__init__"} <= set(ORDER)


def test_a_room_imports_only_rooms_above_it() -> None:
    for path in LIBRARY:
        above = ORDER[: ORDER.index(room(path))] if room(path) in ORDER else ()
        assert rooms_used(path) <= set(above), name(path)


def test_only_where_the_parts_are_put_together_is_the_embedded_world_known() -> None:
    know = {room(path) for path in LIBRARY if "world" in rooms_used(path)}
    assert know <= set(KNOW_THE_WORLD)


def test_the_library_imports_neither_kubeflow_nor_what_is_built_upon_it() -> None:
    outside = {"kfp", "kfp_kubernetes", "pipelines", "components", "benchmarks", "tests"}
    assert not [name(path) for path in LIBRARY if packages(path) & outside]


def test_imports_are_absolute_and_take_no_other_module_s_private_names() -> None:
    for path in OURS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                taken = [alias.name for alias in node.names]
                ours = (node.module or "").split(".")[0] in ("taskmem", "pipelines", "components", "benchmarks")
                assert node.level == 0, name(path)
                assert "*" not in taken, name(path)
                assert not (ours and [alias for alias in taken if alias.startswith("_")]), name(path)


def test_no_module_reads_the_environment_when_it_is_imported() -> None:
    environment = {"os.environ", "os.environb", "os.getenv", "environ", "environb", "getenv"}
    for path in OURS:
        read = {ast.unparse(node) for node in at_import(tree(path)) if isinstance(node, (ast.Name, ast.Attribute))}
        assert read.isdisjoint(environment), name(path)


def test_nothing_is_unpickled() -> None:
    for path in OURS:
        assert packages(path).isdisjoint(UNSAFE), name(path)
        calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        assert {ast.unparse(call.func) for call in calls}.isdisjoint({"torch.load", "torch.save"}), name(path)
        options = {keyword.arg for call in calls for keyword in call.keywords}
        assert options.isdisjoint({"allow_pickle", "trust_remote_code"}), name(path)


def test_yaml_is_read_with_a_safe_loader() -> None:
    read = [(path, call) for path in OURS for call in yaml_loads(path)]
    assert read
    for path, call in read:
        assert ast.unparse(call.func) == "yaml.load", name(path)
        assert [ast.unparse(option.value) in safe_loaders(tree(path)) for option in call.keywords] == [True], name(path)


@pytest.mark.parametrize(
    "code", ["import os\nx = os.environ", "class A:\n    x = os.getenv('x')", "def f(x=environ): ..."]
)
def test_reading_the_environment_is_seen_at_import(code: str) -> None:
    read = {ast.unparse(node) for node in at_import(ast.parse(code)) if isinstance(node, (ast.Name, ast.Attribute))}
    assert read & {"os.environ", "os.getenv", "environ"}


def test_reading_the_environment_in_a_function_is_not_at_import() -> None:
    module = ast.parse("class A:\n    def f(self):\n        return os.environ")
    assert "os.environ" not in {ast.unparse(node) for node in at_import(module) if isinstance(node, ast.Attribute)}


def test_no_file_is_longer_than_400_lines() -> None:
    long = {name(p): n for p in (*OURS, *sources("tests")) if (n := p.read_text(encoding="utf-8").count("\n")) > 400}
    assert long == {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, less those of the functions defined in it; a pipeline's signature lists all its inputs."""
    inner = [node for node in function.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    nested = sum((node.end_lineno or 0) - node.lineno + 1 for node in inner)
    return (function.end_lineno or 0) - function.body[0].lineno + 1 - nested


def test_no_function_is_longer_than_50_lines() -> None:
    for path in OURS:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert length(node) <= 50, f"{name(path)}: {node.name}"
