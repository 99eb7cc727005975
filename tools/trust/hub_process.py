"""The Hub of the tests, in a process of its own: commands come as lines, answers go back."""

from __future__ import annotations

import importlib
import json
import socketserver
import sys
from pathlib import Path

SUPPORT = Path(__file__).resolve().parents[2] / "tests" / "support"


def main() -> None:
    """Run the Hub until the input ends."""
    sys.path.insert(0, str(SUPPORT))
    module = importlib.import_module("loopback_hub")
    # Otherwise each answer waits for an acknowledgement of its first half.
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True
    # Clients that are killed are no news.
    socketserver.BaseServer.handle_error = lambda *_: None  # type: ignore[method-assign]
    with module.LoopbackHub() as hub:
        print(hub.port, flush=True)  # noqa: T201 - the answer
        for line in sys.stdin:
            answer = "ok"
            if line.strip() == "forget":
                hub.large.clear()
                hub.requests.clear()
            else:
                repo, folder = json.loads(line)
                files = {
                    str(path.relative_to(folder)): path.read_bytes()
                    for path in Path(folder).rglob("*")
                    if path.is_file()
                }
                answer = hub.commit(repo, files)
            print(answer, flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
