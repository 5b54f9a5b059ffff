"""Decisions of the server: pure values and functions. No clock, no chance, no input or output: all are arguments."""
