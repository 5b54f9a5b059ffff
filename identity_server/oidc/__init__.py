"""The OIDC discovery provider that stands alone, and its documents as files (spire_features section 21).

held_keys.py      the keys that were read last, how long they may be used without news, and how it is with their source
sources.py        a server's admin socket, an agent's Workload API, a file
static_files.py   both documents as files for a bucket
standalone.py     `identity-server oidc`: source, listeners, health, and an ordered end

Inside a server the same documents are served from its memory: `bootstrap` does that.
"""
