"""Use-cases of the server.

They know ports, never what is behind them; time and chance come as arguments of their makers.
"""
