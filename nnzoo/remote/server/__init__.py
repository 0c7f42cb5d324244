"""A server of traces: `nnzoo serve MODEL...`. It runs graphs, which are data, in worker processes that can be killed.

The parts, from the outside in: `app` (HTTP), `dispatcher` (which job runs next, and what becomes of it), `store` (the
durable queue and the answers), `workers` (who runs jobs) and `local` (processes of this machine).
"""
