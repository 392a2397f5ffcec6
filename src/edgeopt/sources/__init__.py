"""What a user names becomes a `Model`.

A plugin is a module `from_NAME.py` with `load(request: SourceRequest) -> Loaded`. It runs in a worker.
"""
