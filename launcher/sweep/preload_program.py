"""What the parent of the processes of a person's own program imports once, before it forks them: that program.

Its main module is imported as multiprocessing does it, under the name __mp_main__, so that what stands under
`if __name__ == "__main__"` does not run. `LAUNCHER_PROGRAM` in the environment says which it is.
"""

import os
import random
import sys
from typing import Any

from launcher.sweep.preloading import IMPORTING, PROGRAM, UNGUARDED, preloading

python_state: Any = None  # of Python's global generator, where the program has given it a seed
numpy_is_seeded = False  # whether it has given one to NumPy's

with preloading():
    import json

    import numpy
    import threadpoolctl  # noqa: F401
    from hydra.core.plugins import Plugins

    import launcher.sweep.hydra_job
    import launcher.sweep.trial_processes  # noqa: F401
    from launcher.core.compat_python import import_main

    Plugins.instance()  # looks for plugins, which takes a tenth of a second
    before = random.getstate(), numpy.random.get_state(legacy=False)["state"]["key"].tobytes()
    if program := os.environ.pop(PROGRAM, ""):
        os.environ[IMPORTING] = "1"
        try:
            import_main(json.loads(program))
        except SystemExit:  # as Hydra ends the process
            print(f"error: {UNGUARDED}", file=sys.stderr, flush=True)
        del os.environ[IMPORTING]
    python_state = random.getstate() if random.getstate() != before[0] else None
    numpy_is_seeded = numpy.random.get_state(legacy=False)["state"]["key"].tobytes() != before[1]
