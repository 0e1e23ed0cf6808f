"""The other end of `engine_local`: reads units from stdin, answers on what was stdout; prints of the function go to
stderr.

An empty line ends it. When the pipe from the parent closes, the parent is gone and the worker ends at once, in the middle of a unit if
need be: outputs are atomic, so nothing half-written stays.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback

from penjing.data.engine import call
from penjing.errors import PenjingError


def main() -> None:
    """Serve units until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        order = json.loads(lines.get())
        try:
            answer = {"result": call(order["place"], order["unit"])}
            line = json.dumps(answer).encode()
        except PenjingError as error:
            line = json.dumps({"kind": type(error).__name__, "text": str(error)}).encode()
        except Exception:
            line = json.dumps({"kind": "", "text": traceback.format_exc(limit=-12)}).encode()
        _send(answers.fileno(), line + b"\n")


def _listen(lines: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        if not line.strip():
            break
        lines.put(line)
    os._exit(0)


def _send(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data):]


if __name__ == "__main__":
    main()
