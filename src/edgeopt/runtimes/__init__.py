"""One file per engine: an artifact in, a session out.

A plugin is a module with `NAME`, `TOOLS` and `load(path, options) -> Session`. It runs in a worker.
"""
