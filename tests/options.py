"""The options of conf/, as tests hand them to what builds a component."""

import copy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from processes import REPOSITORY


@cache
def _composed(group, name):
    GlobalHydra.instance().clear()  # of a test before
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose(f"{group}/{name}")[group])


def option(group, name, /, **changes):
    """The settings of an option, with those of the files that it is based on, as a plain dict."""
    return copy.deepcopy(_composed(group, name)) | changes
