"""`node-agent files`: identities as files, for programs that read files and know nothing of SPIFFE.

    settings.py    what to write where: one or more sets
    content.py     an X.509 state and tokens as the bytes of files
    swap.py        a whole directory replaced in one step
    notify.py      the command to run, or the signal to send, afterwards
    service.py     follows the Workload API and keeps the sets current

It is a workload like any other: it gets what the process that runs it is entitled to.
"""
