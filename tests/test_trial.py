from pathlib import Path

from launcher import trial


def test_places_that_move_to_the_copy(tmp_path):
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    for place in (tree / "src", tree / ".venv", copy / "src", tmp_path / "tree2"):
        place.mkdir(parents=True)
    trees = {str(tree): str(copy)}
    assert trial.moved(str(tree), trees) == str(copy)
    assert trial.moved(str(tree / "src"), trees) == str(copy / "src")
    for stays in (tree / ".venv", tmp_path / "tree2", tmp_path, Path("/nowhere")):
        assert trial.moved(str(stays), trees) == str(stays)
