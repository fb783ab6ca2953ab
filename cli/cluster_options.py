"""The options that commands about a running cluster share, in the words of their help."""

from typing import Annotated

import typer

Name = Annotated[
    str | None,
    typer.Option(help="The cluster's name; default: the one last started by this user."),
]
Address = Annotated[
    str | None,
    typer.Option(help="host:port of a router, to see the cluster as it does."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
