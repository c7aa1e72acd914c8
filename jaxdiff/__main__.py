"""`python -m jaxdiff`."""

from jaxdiff.cli import command

command()
