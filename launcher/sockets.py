"""Where multiprocessing has its sockets."""

import os
import tempfile
from multiprocessing import util

from launcher.errors import ConfigError

LONGEST = 107 - len("/pymp-12345678/listener-12345678")  # bytes; a socket's path has 107, see unix(7)


def keep_paths_short() -> None:
    """Let multiprocessing put its sockets into /tmp where the name of the temporary directory is too long for them.

    To be called before its first process is started, which inherits the place.

    Raises:
        ConfigError: Nothing can be written there either.
    """
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) <= LONGEST:
        return
    kept, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        util.get_temp_dir()  # made at its first call
    except OSError as error:
        raise ConfigError(
            f"TMPDIR={chosen}: sockets need a name of at most {LONGEST} bytes, and /tmp cannot be used: "
            f"{error.strerror}. Choose a shorter one."
        ) from error
    finally:
        tempfile.tempdir = kept
