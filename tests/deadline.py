"""Tests in no more time than there is: SOAK_UNTIL, in seconds of `date +%s`, is when the last of them may begin.

A slow machine gets through a part of them. Their files come in an order that SOAK_ORDER decides, so that it is not the
same tests that are left out each time.
"""

import os
import random
import time

import pytest

LATE = "no time was left"


def pytest_collection_modifyitems(items):
    if not (order := os.environ.get("SOAK_ORDER")):
        return
    files = sorted({item.path for item in items})
    random.Random(order).shuffle(files)
    place = {path: number for number, path in enumerate(files)}
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.time() > float(os.environ.get("SOAK_UNTIL", "inf")):
        pytest.skip(LATE)
