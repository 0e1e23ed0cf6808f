"""A small local web page on which people read the sampled documents, two side by side, and mark defects with the keyboard.

    python -m penjing.data.audit.review AUDIT_DIR --out REVIEW_DIR [--plant FILE…] [--most N] [--port 8765]

The page asks for the reader's name, remembers every mark at once, and goes on where the reader stopped. The name `adjudicator`
is shown only what two readers disagree on, with both marks. REVIEW_DIR is then the input `marks` of the stage audit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from penjing.console import say
from penjing.data.audit.sheet import ADJUDICATOR, CLASSES, SHEET, add_mark, disputed, make_sheet, read_marks, read_sheet
from penjing.errors import InputError, PenjingError

_PAGE = Path(__file__).with_name("review.html")
_LONGEST_BODY = 4096


def serve(folder: Path, *, port: int = 0) -> ThreadingHTTPServer:
    """A server for the sheet in `folder`, on this machine only; call `serve_forever`. Port 0 takes a free one."""
    items = read_sheet(folder)
    known = {item["key"] for item in items}
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/":
                self._send(HTTPStatus.OK, _PAGE.read_bytes(), "text/html; charset=utf-8")
            elif parts.path == "/favicon.ico":
                self._send(HTTPStatus.NO_CONTENT, b"", "image/x-icon")
            elif parts.path == "/items":
                reader = parse_qs(parts.query).get("reader", [""])[0].strip()
                with lock:
                    marks = read_marks(folder)
                self._json(HTTPStatus.OK, _view(items, marks, reader))
            else:
                self._json(HTTPStatus.NOT_FOUND, {"fault": "no such page"})

        def do_POST(self) -> None:
            if not self.headers.get("Content-Type", "").startswith("application/json"):
                self._json(HTTPStatus.BAD_REQUEST, {"fault": "a mark is sent as JSON"})
                return
            size = int(self.headers.get("Content-Length", "0"))
            try:
                if not 0 < size <= _LONGEST_BODY:
                    raise InputError("a mark is a small JSON object")
                row = json.loads(self.rfile.read(size))
                if not isinstance(row, dict) or row.get("key") not in known or not str(row.get("reader", "")).strip():
                    raise InputError("a mark needs reader, key of a shown item, and mark")
                with lock:
                    add_mark(folder, reader=str(row["reader"]).strip(), key=row["key"], mark=str(row.get("mark")))
            except (InputError, json.JSONDecodeError) as error:
                self._json(HTTPStatus.BAD_REQUEST, {"fault": str(error)})
                return
            self._json(HTTPStatus.OK, {"kept": True})

        def _json(self, status: HTTPStatus, value: object) -> None:
            self._send(status, json.dumps(value, ensure_ascii=False).encode(), "application/json")

        def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silence: the page shows what happens."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _view(items: list[dict[str, Any]], marks: dict[str, dict[str, str]], reader: str) -> dict[str, Any]:
    """What one reader sees: never which items are planted, and others' marks only when adjudicating."""
    shown = items
    others: dict[str, list[str]] = {}
    if reader == ADJUDICATOR:
        keys = set(disputed(marks))
        shown = [item for item in items if item["key"] in keys]
        others = {
            key: [f"{name}: {said[key]}" for name, said in sorted(marks.items()) if name != ADJUDICATOR and key in said]
            for key in keys
        }
    mine = marks.get(reader, {})
    return {
        "classes": list(CLASSES),
        "items": [
            {
                "key": item["key"],
                "text": item["text"],
                "mark": mine.get(item["key"]),
                "others": others.get(item["key"], []),
            }
            for item in shown
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(prog="python -m penjing.data.audit.review", description=__doc__.split("\n")[0])
    parser.add_argument("audit", type=Path, help="directory of an audit stage, with sample.parquet")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for the sheet and the marks; goes on where it stopped"
    )
    parser.add_argument(
        "--plant", type=Path, nargs="*", default=[], help="Parquet or JSON lines of known-bad documents"
    )
    parser.add_argument("--most", type=int, help="read at most so many sampled documents")
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args(arguments)
    try:
        if not (options.out / SHEET).is_file():
            make_sheet(options.out, options.audit / "sample.parquet", options.plant, most=options.most)
        server = serve(options.out, port=options.port)
    except PenjingError as error:
        say(str(error))
        return error.exit_code
    say(f"open http://127.0.0.1:{server.server_address[1]}/  (stop with Ctrl-C; every mark is kept)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
