"""The node agent: the node's representative. It joins, follows the server, and serves the node's workloads.

    cli > daemon > bootstrap > (rpc | server_client | state_dir | files | settings) > services > ports > domain

- `domain`        the agent's life as a value (`session`), what is registered (`entry_cache`), what to fetch next
                  (`svid_plan`), what an answer must prove before it is believed (`issued`)
- `ports`         what the services need of the server, of the disk and of the operator
- `services`      `membership` (join, renew, re-attest), `synchronize` (entries and bundles), `renew_svids`
                  (workload SVIDs), `workload_svids` (who gets what), `attest_workload` (who is calling)
- the rim         `server_client` (gRPC), `state_dir` (one atomic file), `files` (what the operator hands over),
                  `settings`, `rpc` (health), composed in `bootstrap`, run by `daemon`
"""
