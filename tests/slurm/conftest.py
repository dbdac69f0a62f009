import pytest
from own_project import OWN, git


@pytest.fixture
def project(tmp_path):
    """A person's own repository, with a space in its path."""
    place = tmp_path / "my project"
    place.mkdir()
    (place / "own.py").write_text(OWN)
    (place / ".gitignore").write_text("*.bin\noutputs/\n")
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "first")
    return place
