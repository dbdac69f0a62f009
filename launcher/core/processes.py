"""How a module of this package is started in a process of its own."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


def module_command(module: str, *words: str) -> list[str]:
    """A command line that runs the function `main` of a module of this package, whether or not it is installed.

    The place of the package is put last on the path, where it hides nothing, after the package itself was found there.
    Neither the working directory nor the module's own directory, whose csv.py would be the one of everybody, is on it.

    Args:
        module: Full name, such as `launcher.run.trackers.view_process`.
        words: What it finds in sys.argv[1:].
    """
    code = (
        f"import sys; sys.path.insert(0, {ROOT!r}); import launcher; sys.path.append(sys.path.pop(0)); "
        f"from {module} import main; main()"
    )
    return [sys.executable, "-P", "-c", code, *words]
