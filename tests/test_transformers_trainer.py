"""The comparison with the Hugging Face Trainer, made small: two ranks, padded batches, accumulation, LoRA."""

import json

import pytest
from processes import start, train

from benchmarks import transformers_trainer as benchmark

pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.mark.soak
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_losses_are_those_of_the_trainer(lora, tmp_path):
    options = benchmark.parse(["--size", "tiny", "--steps", "5", "--accumulation", "2", *(["--lora"] if lora else [])])
    benchmark.write_model(options, tmp_path)
    words = [*benchmark.words_of(options, 2, tmp_path), "hydra.run.dir=run"]
    ours = train(words, tmp_path, 2, name="io-ours")
    theirs = start(benchmark.by_trainer, (options, 2, tmp_path), tmp_path / "io-theirs", 2)
    ours.ok(120)
    theirs.ok(120)
    losses = benchmark.of_launcher(tmp_path / "run")["losses"]
    trainer = json.loads((tmp_path / "trainer.json").read_text())["losses"]
    assert len(losses) == 5 and benchmark.compare(losses, trainer) < 1e-4
    assert max(losses) - min(losses) > 1e-3, "they have learned"
