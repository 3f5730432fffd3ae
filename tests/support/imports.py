"""The modules of the package and which of them each one imports, read from the source."""

import ast
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "cli", "codecs", "merging", "recipes")
MODULES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
)
Graph = dict[str, set[str]]


def room_of(path: Path) -> str:
    """Returns the folder that a module lies in, as FLOORS and docs/architecture.md name it."""
    return path.parent.relative_to(ROOT).as_posix()


def package_name(room: str) -> str:
    """Returns the package that a room is installed as."""
    return "flexswitch" if room == "api" else "flexswitch." + room.replace("/", ".")


def module_name(path: Path) -> str:
    """Returns the name that a module is imported by."""
    package = package_name(room_of(path))
    return package if path.stem == "__init__" else f"{package}.{path.stem}"


def imported_names(path: Path) -> list[str]:
    """Returns the modules that a file imports, inside functions too, in the order of its lines."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def module_graph() -> Graph:
    """Returns module -> modules of the package that it imports."""
    known = {module_name(path) for path in MODULES}
    return {module_name(path): known.intersection(imported_names(path)) for path in MODULES}


def room_graph() -> Graph:
    """Returns room -> rooms that it imports, without itself."""
    rooms = {module_name(path): room_of(path) for path in MODULES}
    graph: Graph = {room: set() for room in rooms.values()}
    for module, imported in module_graph().items():
        graph[rooms[module]] |= {rooms[name] for name in imported} - {rooms[module]}
    return graph


def longest_chain(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns a longest path of imports. Raises: graphlib.CycleError where there is a cycle."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        below = max((chains[other] for other in sorted(graph[name])), key=len, default=[])
        chains[name] = [name, *below]
    return max(chains.values(), key=len)


if __name__ == "__main__":
    print(f"{len(room_graph())} rooms; the longest chain of imports has these modules:")
    print("\n".join(longest_chain(module_graph())))
