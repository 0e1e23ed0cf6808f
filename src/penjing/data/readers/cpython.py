"""English documentation that every CPython carries: language topics and the docstrings of the standard library.

Nothing is imported; sources are parsed. The order is by module name and line, texts that occur twice are given once.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penjing.errors import ConfigError, InputError, fault
from penjing.lookup import did_you_mean

COLLECTIONS = ("topics", "docstrings")
MIN_CHARACTERS = 200
_SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "turtledemo",
    "pydoc_data",
    "_vendor",
    "ensurepip",
}


def check(name: str) -> None:
    """ConfigError when there is no such collection."""
    if name not in COLLECTIONS:
        raise ConfigError(
            fault(
                f"unknown collection 'cpython:{name}'",
                expected=f"one of {', '.join(COLLECTIONS)}",
                fix=did_you_mean(name, COLLECTIONS),
            )
        )


def version_file() -> Path:
    """The file that changes with every release of Python, for fingerprints."""
    path = _library() / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise InputError(fault("this Python carries no documentation topics", where=path))
    return path


def read(name: str) -> Iterator[dict[str, Any]]:
    """Documents (id, text, lang "en", meta) of one collection."""
    check(name)
    seen: set[str] = set()
    for key, text in _topics() if name == "topics" else _docstrings():
        if text not in seen:
            seen.add(text)
            yield {
                "id": f"cpython/{name}/{key}",
                "text": text,
                "lang": "en",
                "offset": len(seen) - 1,
                "meta": {"license": "PSF-2.0"},
            }


def _topics() -> Iterator[tuple[str, str]]:
    tree = ast.parse(version_file().read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            for key in sorted(topics):
                yield key, topics[key].strip() + "\n"


def _docstrings() -> Iterator[tuple[str, str]]:
    root = _library()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root)
        if _SKIPPED.intersection(module.parts):
            continue
        dotted = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a distribution may keep files for other versions beside its own
        yield from _of(tree, dotted)


def _of(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    waiting: list[tuple[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]] = [(tree, module)]
    while waiting:
        node, name = waiting.pop(0)
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if len(text) >= MIN_CHARACTERS:
            yield name, text + "\n"
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                waiting.append((child, f"{name}.{child.name}"))


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])
