"""`file.py:factory`: a function without required arguments that returns an `nn.Module`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from edgeopt.core.errors import SourceError
from edgeopt.plugins import missing_backend
from edgeopt.sources.request import Loaded, SourceRequest


def load(request: SourceRequest) -> Loaded:
    """Run the factory.

    Raises:
        SourceError: the file does not import, has no such function, or it returns something else.
        MissingBackendError: the file imports a package that an extra brings.
    """
    return Loaded(build(request.location))


def build(location: str) -> torch.nn.Module:
    """Import `file.py:factory` and call it; other files of its folder can be imported by it."""
    file, _, factory_name = location.rpartition(":")
    path = Path(file)
    sys.path.insert(0, str(path.parent))
    specification = importlib.util.spec_from_file_location(f"edgeopt_user_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
        factory = getattr(module, factory_name)
        result = factory()
    except ModuleNotFoundError as error:
        raise missing_backend(error) from error
    except AttributeError as error:
        if not hasattr(module, factory_name):
            raise SourceError(f"{path}: has no function {factory_name!r}") from error
        raise SourceError(f"{location}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise SourceError(f"{location}: {type(error).__name__}: {error}") from error
    if not isinstance(result, torch.nn.Module):
        raise SourceError(f"{location}: returned {type(result).__name__}, not an nn.Module")
    return result.eval()
