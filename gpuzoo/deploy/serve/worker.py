"""The service inside of the sandbox: `python -m gpuzoo.deploy.serve.worker`, with its
settings as JSON on stdin."""

import json
import os
import pathlib
import socket
import sys

from gpuzoo.deploy.serve import server
from gpuzoo.deploy.serve.guard import Limits
from gpuzoo.errors import GpuzooError


def main() -> None:
    """Serve; report the start, and the counts or an error, as lines of JSON."""
    settings = json.load(sys.stdin)
    sock = socket.socket(fileno=settings["socket"])
    with os.fdopen(settings["report"], "w") as reports:

        def report(found: dict) -> None:
            print(json.dumps(found), file=reports, flush=True)

        try:
            found = server.run(
                pathlib.Path(settings["folder"]), sock, Limits(**settings["limits"]),
                settings["token"], settings["quiet"],
                started=lambda artefact: report({"started": True}),
            )  # fmt: skip
        except GpuzooError as error:
            found = {"error": str(error)}
        report(found)


if __name__ == "__main__":
    main()
