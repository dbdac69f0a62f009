"""What the parent of the processes of a person's own program imports once, before it forks them: that program.

Its main module is imported as multiprocessing does it, under the name __mp_main__, so that what stands under
`if __name__ == "__main__"` does not run. `LAUNCHER_PROGRAM` in the environment says which it is.
"""

import os
import random
from typing import Any

from launcher.sweep.preloading import preloading

PROGRAM, IMPORTING = "LAUNCHER_PROGRAM", "LAUNCHER_IMPORTING"  # the latter is set while it is imported
python_state: Any = None  # of Python's global generator, where the program has given it a seed
numpy_is_seeded = False  # whether it has given one to NumPy's

with preloading():
    import json

    import numpy
    import threadpoolctl  # noqa: F401
    from hydra.core.plugins import Plugins

    import launcher.sweep.hydra_job  # noqa: F401
    from launcher.core.compat_python import import_main

    Plugins.instance()  # looks for plugins, which takes a tenth of a second
    before = random.getstate(), numpy.random.get_state(legacy=False)["state"]
    if program := os.environ.pop(PROGRAM, ""):
        os.environ[IMPORTING] = "1"
        import_main(json.loads(program))
        del os.environ[IMPORTING]
    python_state = random.getstate() if random.getstate() != before[0] else None
    numpy_is_seeded = repr(numpy.random.get_state(legacy=False)["state"]) != repr(before[1])
