import os
import sys

from gpuzoo.errors import ExitCode
from gpuzoo.runtime import bootstrap


def main() -> None:
    """The `gpuzoo` command."""
    try:
        bootstrap.start(sys.argv[1:])  # first: it may re-execute the process
        from gpuzoo.cli import app
    except KeyboardInterrupt:
        os.write(2, b"gpuzoo: interrupted\n")
        os._exit(ExitCode.INTERRUPTED)
    app.main()


if __name__ == "__main__":
    main()
