import re

import pytest

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    assert import_extra("json.decoder", "", "").JSONDecoder
    monkeypatch.setitem(__import__("sys").modules, "json.tool", None)
    words = (
        "model=x needs json.tool, which does not import (import of json.tool halted; None in sys.modules): pip install"
    )
    with pytest.raises(ConfigError, match=re.escape(words) + r" 'hydra-accelerate-launcher\[vision\]'$"):
        import_extra("json.tool", "model=x needs json.tool", "vision")
