"""That tests which are late are left out, and said to be, and that the order is one's own."""

import os
import subprocess
import sys
import time

from processes import REPOSITORY

TESTS = "import time\ndef test_one():\n    time.sleep(0.01)\ndef test_two():\n    pass\n"


def outcome(place, **environment):
    words = ["-p", "deadline", "-p", "no:cacheprovider", "-rs", "-v", "-n", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(place)],
        cwd=place, env=os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")} | environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_late_tests_are_skipped_and_counted_and_files_come_in_another_order(tmp_path):
    for name in "abcdef":
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    assert "12 passed" in outcome(tmp_path)
    late = outcome(tmp_path, SOAK_UNTIL=str(time.time() - 1))
    assert "12 skipped" in late and "no time was left" in late
    assert "12 passed" in outcome(tmp_path, SOAK_UNTIL=str(time.time() + 60))
    orders = {
        tuple(line for line in outcome(tmp_path, SOAK_ORDER=order).splitlines() if "PASSED" in line) for order in "1234"
    }
    assert len(orders) > 1 and all(len(order) == 12 for order in orders)
