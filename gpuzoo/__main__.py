import os
import sys

from gpuzoo import process


def main() -> None:
    """The `gpuzoo` command."""
    try:
        process.start(sys.argv[1:])  # first: it may begin the process afresh
        from gpuzoo import cli
    except KeyboardInterrupt:
        os.write(2, b"gpuzoo: interrupted\n")
        os._exit(130)
    cli.main()


if __name__ == "__main__":
    main()
