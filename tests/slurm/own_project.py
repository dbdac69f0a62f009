"""A person's own repository, whose code becomes jobs."""

import subprocess

OWN = """
import os, time
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes, mode="ok"):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, num_classes)
        self.mode, self.steps = mode, 0
        if os.environ.get("RANK", "0") == "0" and "SLURM_JOB_ID" in os.environ:
            with open(os.environ["NOTES"], "a") as file:
                print(repr([os.environ["SLURM_ARRAY_TASK_ID"], mode, __file__]), file=file)
    def forward(self, x):
        self.steps += self.training
        if self.training and self.mode == "slow":
            time.sleep(0.8)
        if self.steps == 4 and self.mode == "raise" and "CURED" not in os.environ:
            raise RuntimeError("a wheel came off")
        return self.layer(x.flatten(1))
"""


def git(place, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", str(place), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
