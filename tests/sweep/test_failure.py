import json

from launcher.sweep.failure import FAILED, first_error, tail, write


def test_the_first_error_is_what_the_first_that_failed_said():
    text = "step 1\nrank 1 (pid 7) has been silent\nfailed: rank 0: no space\nerror: later\nrank 2 (pid 8) is gone\n"
    assert first_error(text) == "rank 0: no space"
    assert first_error("rank 2 (pid 8) is gone, and so this one ends") == "rank 2 (pid 8) is gone, and so this one ends"
    assert first_error("nobody said anything, failed: or not") == ""


def test_the_end_of_an_attempt_is_that_attempts_alone(tmp_path):
    output = tmp_path / "output.log"
    assert tail(output) == ""
    output.write_text("before" + "x" * 70_000)
    assert tail(output, 6) == "x" * 64_000
    output.write_text("before" + "now")
    assert tail(output, 6) == "now"


def test_a_failure_is_kept_with_the_end_of_its_output(tmp_path):
    write(tmp_path, "why", [1, None], "y" * 9000, seconds=2)
    kept = json.loads((tmp_path / FAILED).read_text())
    assert (kept["reason"], kept["exit_status"], kept["seconds"], len(kept["output"])) == ("why", [1, None], 2, 8000)
