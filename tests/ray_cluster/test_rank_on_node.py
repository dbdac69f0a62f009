import os
import signal
import sys
import threading
import time

from processes import REPOSITORY

from launcher.ray_cluster.rank_on_node import RankOnNode, missing_on_node

KEEPER = str(REPOSITORY / "launcher/ray_cluster/keeper.py")


def run(actor, code, place):
    environment = {"PATH": os.environ["PATH"], "OWN": "here"}
    return actor.run(KEEPER, ["-c", code], environment, str(place), str(place / "out"))


def test_a_rank_has_its_environment_and_place_and_appends_to_its_output(tmp_path):
    (tmp_path / "out").write_text("before\n")
    code = "import os, sys; print(os.environ['OWN'], os.getcwd(), 'HOME' in os.environ, flush=True); sys.exit(5)"
    assert run(RankOnNode(), code, tmp_path) == 5
    assert (tmp_path / "out").read_text() == f"before\nhere {tmp_path} False\n"


def test_a_signal_ends_a_rank_that_runs_and_one_that_has_not_begun(tmp_path):
    actor, found = RankOnNode(), []
    code = "import time; print('there', flush=True); time.sleep(60)"
    thread = threading.Thread(target=lambda: found.append(run(actor, code, tmp_path)))
    thread.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "out").exists() or not (tmp_path / "out").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    actor.send(signal.SIGTERM)
    thread.join(30)
    assert found == [-signal.SIGTERM]
    early = RankOnNode()
    early.send(signal.SIGTERM)
    assert run(early, "print('never')", tmp_path) == -signal.SIGTERM
    assert (tmp_path / "out").read_text() == "there\n"


def test_a_node_says_what_it_does_not_see(tmp_path):
    assert missing_on_node([str(tmp_path), sys.executable, str(tmp_path / "none")]) == [str(tmp_path / "none")]
