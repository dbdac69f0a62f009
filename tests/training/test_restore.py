"""What a run goes on from: its own copies, and not the files of a checkpoint."""

import gc
import os
from pathlib import Path

from launcher.training.checkpoint import newest_good, read_checkpoint
from launcher.training.progress import Progress
from launcher.training.resume import gather_state, restore
from launcher.training.saver import Saver


def test_nothing_of_a_run_lives_in_the_files_it_resumed_from(tmp_path):
    """They are mapped, not read; then overwritten, cut short and removed: the run has copies, and no file is open."""
    from test_probe import OPTIMIZERS, Drawing, _all_of, _data, _made, _same

    from launcher.batching.plan import plan_batch
    from launcher.batching.stream import Stream

    def new(kind, options):
        return _made(Drawing(), _data(6), plan, kind, 1.0, 0.9, fused=False, **options)[0]

    plan = plan_batch(64, 32, 1, None)
    for name, (kind, options) in OPTIMIZERS.items():
        if name == "adagrad":
            continue  # without the momentum that this schedule turns
        trainer = new(kind, options)
        for batch in Stream(_data(6).train, plan, 0, 0, trainer.device, 0).batches(0, 3):
            trainer.step(batch)
        state = gather_state(trainer, Progress(step=3))
        saver = Saver(tmp_path / name, keep=1, max_failures=0)
        saver.save(3, trainer.weights(trainer.eval_model), state, ())
        saver.close()
        found = newest_good(tmp_path / name)
        other = new(kind, options)
        read = read_checkpoint(found)
        assert Path("/proc/self/maps").read_text().count(str(found)) >= 2, "mapped"
        restore(*read, other)
        del read
        for file in found.iterdir():
            file.write_bytes(bytes(file.stat().st_size))
            os.truncate(file, 0)
            file.unlink()
        gc.collect()
        assert str(found) not in Path("/proc/self/maps").read_text()
        mine, theirs = (_all_of(one) for one in (other, trainer))
        skipped = ("window", "gradients", "torch", "python", "numpy")
        _same(*({k: v for k, v in of.items() if not k.startswith(skipped)} for of in (mine, theirs)))
        assert other.accumulator.steps == [0, 1, 2]
        for batch in Stream(_data(6).train, plan, 0, 0, trainer.device, 0).batches(3, 5):
            other.step(batch)
        other.check()
