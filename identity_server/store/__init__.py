"""The database: tables, repositories, the ordered event log, its one writer and its follower.

schema, mapping           tables, and rows <-> values
*_repository, selection   queries behind the repository protocols
event_log                 head and events; what an operation records
writer                    one thread: batches of operations in shared transactions
follower                  one thread: log events -> the next State
sql_store                 the Store port around them
database, sqlite_file     engines and their settings; the private, locked file
migrating, migrations     Alembic, forward only
failures                  what a driver's error means
"""
