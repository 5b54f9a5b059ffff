"""What both command lines share: Go-style flags, lazy groups, output for people and for programs, and failures.

    flags.py        Flag and Command: one or two dashes, `=value`, kebab-case or SPIRE's names
    groups.py       Group: subcommands by name, imported when they are called
    values.py       types of flags: durations, bounded numbers
    failures.py     Failure (what happened, what to do next) and `run`, the one place that ends the process
    printing.py     JSON as SPIRE prints it; blocks and tables for people
    connection.py   a blocking gRPC channel to a local daemon, and its errors in words
    pem_files.py    certificates and keys as PEM, on screen and in files

Importing a command line must stay cheap: nothing here imports a database, a web framework or a settings library.
"""
