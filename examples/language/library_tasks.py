"""Makes examples of three tasks about the functions of Python's standard library.

train.py trains on them.
"""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TEST_SHARE = 10  # one module in ten
TEST_EXAMPLES = 200
NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Named(NamedTuple):
    """A function of the library, and the module that it is in."""

    module: str
    function: Function


def header(function: Function) -> str:
    """Returns the first line of a function, such as `def dedent(text)`."""
    return f"def {function.name}({ast.unparse(function.args)})"


def explained(named: Named) -> dict[str, Any] | None:
    """Returns a chat that asks what a function does; the answer is the first paragraph of its docstring."""
    text = (ast.get_docstring(named.function) or "").split("\n\n")[0]
    if not text:
        return None
    question = f"What does {named.function.name} of {named.module} do?"
    answer = " ".join(text.split())
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def described(named: Named) -> dict[str, Any]:
    """Returns a prompt for the description of a function's arguments as JSON."""
    arguments = named.function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    values = [ast.unparse(value) for value in arguments.defaults]
    record = {
        "name": named.function.name,
        "arguments": names,
        "defaults": dict(zip(names[len(names) - len(values) :], values, strict=True)),
    }
    return {"prompt": f"JSON of {header(named.function)}\n", "completion": json.dumps(record)}


def written(named: Named) -> dict[str, Any] | None:
    """Returns a prompt for the body of a function, without its docstring."""
    body = named.function.body[ast.get_docstring(named.function) is not None :]
    if not body:
        return None
    text = "\n".join(ast.unparse(statement) for statement in body)
    lines = "\n".join(f"    {line}" for line in text.splitlines())
    return {"prompt": f"{header(named.function)}:\n", "completion": lines}


TASKS: dict[str, Callable[[Named], dict[str, Any] | None]] = {
    "explain": explained,
    "describe": described,
    "write": written,
}


def library_files() -> list[Path]:
    """Returns the files of the standard library that every installation has, sorted."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [
        path for path in sorted(folder.rglob("*.py")) if not NOT_LIBRARY & set(path.relative_to(folder).parts)
    ]


def module_name(path: Path) -> str:
    """Returns the name under which a file of the library is imported."""
    parts = path.relative_to(sysconfig.get_path("stdlib")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_test(path: Path) -> bool:
    """Returns whether a module's functions are test examples; this depends on its name alone."""
    return int(hashlib.sha256(module_name(path).encode()).hexdigest(), 16) % TEST_SHARE == 0


def functions(path: Path) -> Iterator[Named]:
    """Yields the functions of a file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, Function):
            yield Named(module_name(path), node)


def write_data(directory: Path) -> None:
    """Writes the train and test examples of every task, each once, in an order that a hash gives."""
    found: dict[str, dict[str, str]] = {
        f"{task}.{split}": {} for task in TASKS for split in ("train", "test")
    }
    for path in library_files():
        split = "test" if is_test(path) else "train"
        for named in functions(path):
            for task, example_of in TASKS.items():
                if (example := example_of(named)) is not None:
                    line = json.dumps(example)
                    found[f"{task}.{split}"][hashlib.sha256(line.encode()).hexdigest()] = line
    for name, lines in found.items():
        task, _, split = name.partition(".")
        seen = found[f"{task}.train"] if split == "test" else {}
        chosen = [lines[digest] for digest in sorted(lines) if digest not in seen]
        kept = chosen[:TEST_EXAMPLES] if split == "test" else chosen
        (directory / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in kept))
