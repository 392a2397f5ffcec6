"""One file per format: an exported program in, an artifact out.

A plugin is a module with `export(request: ExportRequest) -> Export`. It runs in a worker, writes only `request.out`,
and leaves the artifact complete or raises.
"""
