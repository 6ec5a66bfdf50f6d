import sys

from gpuzoo import process


def main() -> None:
    """The `gpuzoo` command."""
    process.start(sys.argv[1:])  # first: it may begin the process afresh
    from gpuzoo import cli

    cli.main()


if __name__ == "__main__":
    main()
