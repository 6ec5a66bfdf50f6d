"""The command line."""

from gpuzoo.cli.app import main as main
from gpuzoo.cli.app import run_recipe as run_recipe
