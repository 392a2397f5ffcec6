"""Core ML ML Programs executed on any machine: a reference evaluator on torch.

`load_package` opens an `.mlpackage`, `Evaluator` runs it. It says what the program computes; what a device's own
backends do with it beyond that (fused kernels, other orders of summation, the Neural Engine's arithmetic) it cannot
say.
"""

from __future__ import annotations

from edgeopt.mil.executor import Evaluator
from edgeopt.mil.package import Program, load_package, program_of
from edgeopt.mil.snr import snr_db

__all__ = ["Evaluator", "Program", "load_package", "program_of", "snr_db"]
