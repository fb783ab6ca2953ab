"""`baton`: names its subcommands; each imports what it needs only when called."""
