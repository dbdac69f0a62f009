"""A hook that looks on while a run trains: hooks=[{_target_: probe.Probe, every: 5}]."""

from typing import Any


class Probe:
    """Logs the norm of the weights, the error and an image, and remembers the largest norm."""

    def __init__(self, every: int = 1) -> None:
        self.every, self.largest = every, 0.0

    def after_step(self, run: Any) -> None:
        """After each update."""
        if run.step % self.every == 0:
            norm = sum(p.square().sum() for p in run.model.parameters()).sqrt()
            self.largest = max(self.largest, float(norm))
            run.log("probe/weight_norm", norm)

    def after_evaluation(self, run: Any) -> None:
        """After each evaluation of the validation split."""
        run.log("probe/error", 1 - run.metrics["eval/accuracy"])
        run.log("probe/first_image", run.data.validation.inputs[0].float() / 16)

    def at_end(self, run: Any) -> None:
        """After the last update and its evaluation."""
        run.log("probe/largest_norm", self.largest)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what a checkpoint has kept."""
        self.largest = state["largest"]
