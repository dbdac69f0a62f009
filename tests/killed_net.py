"""A model of a person's own that kills its process in the training step that KILL names, with SIGKILL."""

KILLED = """
import os, signal
from launcher.models.mlp import MLP

class Net(MLP):
    calls = 0

    def forward(self, x):
        Net.calls += self.training
        if Net.calls == int(os.environ.get("KILL", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""
