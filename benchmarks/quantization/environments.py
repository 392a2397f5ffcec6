"""Virtual environments of tools that would disturb the project's own; made when first needed, under `build/`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = ROOT / "build" / "venvs"


def python_of(environment: str | None) -> str:
    """Return the interpreter of an environment, installed first where it is not.

    Raises:
        SystemExit: its packages cannot be installed.
    """
    if environment is None:
        return sys.executable
    requirements = HERE / "requirements" / f"{environment}.txt"
    folder = VENVS / environment
    wanted = hashlib.sha256(requirements.read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    marker = folder / "installed"
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {environment} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += ["-c", str(ROOT / "constraints.txt"), "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        marker.write_text(wanted)
    return str(folder / "bin" / "python")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(python_of(name))
