"""The command line: overrides, ``--help``, and errors as exit codes."""
