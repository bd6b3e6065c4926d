"""`python -m export NAME` runs export, train or evaluate without the command `paca`."""

import typer

from . import cli

app = typer.Typer(pretty_exceptions_enable=False)
for command in (cli.export, cli.train, cli.evaluate):
    app.command()(command)
app()
