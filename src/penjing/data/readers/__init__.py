"""Reading what people have: JSON lines, Parquet, text, Markdown, CSV, HTML, WARC and WET, tar archives; plain or
compressed.

`expand` turns a path, directory, glob or URL into files; `read` yields the documents of one file as plain dicts, and a
`Damage` for everything that could not be read, with its place, so that the caller counts it and goes on.
"""

from __future__ import annotations

import fnmatch
import glob
import importlib
import importlib.resources
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from penjing.data.readers import cpython
from penjing.data.readers.stream import is_url
from penjing.errors import ConfigError, InputError, fault

_READERS = {
    "jsonl": "lines:read_jsonl", "parquet": "tables:read_parquet", "text": "lines:read_text",
    "markdown": "lines:read_text",
    "csv": "tables:read_csv", "html": "pages:read_html", "warc": "archives:read_warc", "wet": "archives:read_warc",
    "tar": "archives:read_tar",
}
KINDS = tuple(_READERS)
PACKAGE = "package:"
CPYTHON = "cpython:"
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "text", ".text": "text",
    ".md": "markdown", ".markdown": "markdown", ".rst": "text", ".csv": "csv", ".tsv": "csv", ".html": "html",
    ".htm": "html", ".xhtml": "html", ".shtml": "html", ".warc": "warc", ".arc": "warc", ".wet": "wet", ".tar": "tar",
    ".tgz": "tar", ".txz": "tar",
}

Record = dict[str, Any]
"""Keys: text (str), and perhaps id, url, lang, encoding and meta (dict)."""


@dataclass(frozen=True)
class Damage:
    """Something in a file that is not a document: where it begins (byte, or row in a table), what is wrong, its size.
    """

    file: str
    offset: int
    what: str
    size: int = 0
    sample: str = ""


@dataclass(frozen=True)
class Options:
    """How to read: the name of the text field (several joined by `+`), the longest record, and how HTML becomes text.
    """

    text_field: str = "text"
    max_record_bytes: int = 64 << 20
    html: str = "own"
    encoding: str | None = None
    start: int = 0
    end: int | None = None
    """Byte range of a plain JSON-lines file (records that begin in it) or row-group range of a Parquet file."""


def expand(path: str) -> list[str]:
    """The files that `path` means, sorted: a file, a directory (every file of a known kind below it), a glob, a URL
    that fsspec knows, `package:penjing.samples/NAME`, or `cpython:topics` / `cpython:docstrings`. InputError when
    there are none.
    """
    if path.startswith(CPYTHON):
        cpython.check(path.removeprefix(CPYTHON))
        return [path]
    if path.startswith(PACKAGE):
        return [str(_in_package(path))]
    if is_url(path):
        from penjing.data.readers.stream import expand_url

        found = [name for name in expand_url(path) if kind_of(name)]
    elif Path(path).is_dir():
        found = sorted(str(file) for file in Path(path).rglob("*") if file.is_file() and kind_of(file.name)
                       and not any(part.startswith(".") for part in file.relative_to(path).parts))
    elif Path(path).is_file():
        found = [path]
    else:
        found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not found:
        raise InputError(fault("nothing to read here", where=path, expected="a file, a directory or glob with files of "
                               f"the kinds {', '.join(KINDS)}, or a URL"))
    return found


def kind_of(name: str) -> str | None:
    """The kind of a file by its name, or None when the name says nothing."""
    base = PurePosixPath(name).name.lower()
    if fnmatch.fnmatch(base, "*.warc.wet*") or fnmatch.fnmatch(base, "*.wet.*"):
        return "wet"
    while base.endswith(COMPRESSED):
        base = base.rsplit(".", 1)[0]
    return _SUFFIXES.get(PurePosixPath(base).suffix)


def read(name: str, options: Options, *, kind: str | None = None) -> Iterator[Record | Damage]:
    """The documents of one file, in order, and what was damaged in it. InputError when the file cannot be opened at
    all.
    """
    if name.startswith(CPYTHON):
        yield from cpython.read(name.removeprefix(CPYTHON))
        return
    kind = kind or kind_of(name)
    if kind is None:
        raise ConfigError(fault("the kind of this file is not known by its name", where=name,
                                fix=f"set 'kind' to one of {', '.join(KINDS)}"))
    if kind not in _READERS:
        raise ConfigError(fault(f"unknown kind '{kind}'", where=name, expected=f"one of {', '.join(KINDS)}"))
    module, function = _READERS[kind].split(":")
    reader = getattr(importlib.import_module(f"penjing.data.readers.{module}"), function)
    yield from reader(name, options)


def _in_package(path: str) -> Path:
    package, _, name = path.removeprefix(PACKAGE).partition("/")
    try:
        place = importlib.resources.files(package).joinpath(name)
    except ModuleNotFoundError as error:
        raise InputError(fault(f"no package '{package}'", where=path)) from error
    found = Path(os.fspath(place)) if isinstance(place, os.PathLike) else Path(str(place))
    if not found.is_file():
        raise InputError(fault(f"package '{package}' has no file '{name}'", where=path))
    return found
