"""Models of transformers, beside what that library itself makes of the same directories."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_options import settings
from processes import command, summary, train
from safetensors.torch import load_file
from torch.nn import functional as F

import launcher
from launcher.core.errors import ConfigError
from launcher.models.build import build_model, kept_facts

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2}


def make(begins=True, facts=None, **changes):
    torch.manual_seed(0)
    facts = {"num_outputs": 3, "input_shape": (6,)} if facts is None else facts
    return build_model(settings("transformers") | changes, facts, begins)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Directories of models, as save_pretrained writes them."""
    directory = tmp_path_factory.mktemp("transformers")
    torch.manual_seed(1)
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    bert.save_pretrained(directory / "bert")
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, vocab_size=320, n_positions=32))
    gpt.save_pretrained(directory / "gpt")
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, vocab_size=256, n_positions=32))
    gpt.save_pretrained(directory / "bytes")
    torch.save(bert.state_dict(), directory / "pytorch_model.bin")
    shutil.copytree(directory / "bert", directory / "pickled")
    (directory / "pickled/model.safetensors").unlink()
    (directory / "pytorch_model.bin").rename(directory / "pickled/pytorch_model.bin")
    (directory / "book.txt").write_text("a book of words, read twice. " * 40)
    return directory


def batch():
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(30, (4, 6), generator=random)
    return {"input_ids": ids, "attention_mask": (torch.arange(6) < torch.tensor([[3], [6], [4], [5]])).long()}


@pytest.mark.parametrize("auto", ["sequence_classification", "token_classification", "masked", "AutoModelForMaskedLM"])
def test_weights_are_those_of_the_directory(auto, place):
    facts = {"num_outputs": 30, "block": 6} if "ask" in auto else None
    model = make(auto=auto, name=str(place / "bert"), facts=facts).eval()
    kinds = {"sequence_classification": "SequenceClassification", "token_classification": "TokenClassification"}
    kind = getattr(transformers, f"BertFor{kinds.get(auto, 'MaskedLM')}")
    outputs = {} if facts else {"num_labels": 3}
    theirs = kind.from_pretrained(place / "bert", **outputs).eval()
    new = ("classifier", "bert.pooler")  # as the seed has them
    theirs.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(new)}, strict=False)
    torch.testing.assert_close(model(batch()).logits, theirs(**batch()).logits)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    line = model.begun_with
    assert str(place / "bert") in line
    assert ("missing: " in line and "classifier.weight" in line) == (facts is None), line


def test_a_new_model_is_made_of_a_type_and_a_kept_one_of_its_configuration(place):
    changes = {**SMALL, "hidden_dropout_prob": 0.5}
    model = make(type="bert", config=changes)
    assert model.config.hidden_dropout_prob == 0.5 and model.num_labels == 3 and model.begun_with == ""
    facts = {"num_outputs": 3, **json.loads(json.dumps(kept_facts(model)))}
    again = make(False, facts, name="gone", weights=True, config={"vocab_size": 1})
    again.load_state_dict(model.state_dict())
    assert type(again) is type(model) and again.config.to_dict() == model.config.to_dict()
    torch.testing.assert_close(again.eval()(batch()).logits, model.eval()(batch()).logits)
    # Of a directory the configuration alone
    random = make(name=str(place / "bert"), weights=False)
    ours = random.bert.embeddings.word_embeddings.weight
    assert ours.shape == (30, 16) and not ours.equal(load_file(place / "bert/model.safetensors")[
        "bert.embeddings.word_embeddings.weight"
    ])  # fmt: skip


@pytest.mark.parametrize("name", ["n_positions", "max_position_embeddings"])
def test_positions_that_a_person_has_set_stay(name):
    facts = {"num_outputs": 30, "block": 8}
    assert make(auto="causal", type="gpt2", facts=facts, config={**GPT, name: 9}).config.n_positions == 9
    with pytest.raises(ConfigError, match=r"data.block=8: the model sees at most 7 tokens"):
        make(auto="causal", type="gpt2", facts=facts, config={**GPT, name: 7})


def test_models_of_the_next_token_classify_by_the_last_one_that_is_not_padding():
    model = make(type="gpt2", config={**GPT, "vocab_size": 30, "pad_token_id": None, "eos_token_id": 7}).eval()
    assert model.config.pad_token_id == 7
    ids = torch.tensor([[1, 2, 3, 7, 7], [4, 5, 6, 1, 2]])
    whole, short = model(ids).logits, model(ids[:1, :3]).logits
    torch.testing.assert_close(whole[:1], short)


def test_of_texts_to_classify_the_vocabulary_is_that_of_the_data(place):
    facts = {"num_outputs": 2, "vocab_size": 11}
    assert make(type="bert", facts=facts, config={"hidden_size": 12}).config.vocab_size == 11
    assert make(name=str(place / "bert"), facts=facts).config.vocab_size == 30  # has tokens that the data have not
    with pytest.raises(ConfigError, match="its vocabulary has 30 tokens, and that of the data 31"):
        make(name=str(place / "bert"), facts=facts | {"vocab_size": 31})


def test_a_vocabulary_that_was_rounded_up_is_cut(place):
    model = make(auto="causal", name=str(place / "gpt"), facts={"num_outputs": 300, "block": 32}).eval()
    theirs = transformers.GPT2LMHeadModel.from_pretrained(place / "gpt").eval()
    ids = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits[..., :300])
    assert "20 rows of the vocabulary" in model.begun_with and model.config.vocab_size == 300


LANGUAGE = {"num_outputs": 300, "block": 32}


@pytest.mark.parametrize(
    ("changes", "facts", "said"),
    [
        ({}, None, r"model\.name, model\.type: give one of them"),
        ({"name": "a/b", "type": "bert"}, None, "give one of them"),
        ({"name": "no/such"}, None, r"model\.name=no/such: there is no such directory.*model\.download=true"),
        ({"name": "."}, None, "has no config.json"),
        ({"name": "pickled"}, None, r"no \.safetensors file, and nothing in pytorch_model\.bin is executed"),
        ({"type": "bertt"}, None, r"model\.type=bertt: .*The nearest: bert"),
        ({"type": "bert", "auto": "casual"}, None, r"model\.auto=casual: .*The nearest: causal"),
        ({"type": "bert", "auto": "AutoModelForTextToSpectrogram"}, None, r"model\.auto=AutoModelForTextToSpectrogram"),
        ({"type": "bert", "config": {"hidden": 4}}, None, r"model\.config\.hidden: .*nearest: .*hidden_"),
        ({"type": "bert", "weights": "no"}, None, r"model\.weights=no: must be true or false"),
        ({"name": "gpt", "auto": "causal"}, {"num_outputs": 5000, "block": 8}, "vocabulary has 320 tokens.*5000"),
        ({"name": "gpt", "auto": "causal"}, {"num_outputs": 320, "block": 64}, r"data\.block=64: .* at most 32 tokens"),
        ({"type": "gpt2", "auto": "causal", "config": {"vocab_size": 9}}, LANGUAGE, "vocabulary has 9 tokens"),
    ],
)
def test_what_is_wrong_is_a_sentence(changes, facts, said, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(ConfigError, match=said) as found:
        make(facts=facts, **changes)
    assert "\n" not in str(found.value)


def test_code_beside_the_weights_runs_only_where_it_is_trusted(place):
    coded = place / "coded"
    coded.mkdir()
    (coded / "own_code.py").write_text(
        "from pathlib import Path\nPath(__file__).touch()\nPath('HERE').touch()\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class Own(BertForSequenceClassification):\n    config_class = OwnConfig\n".replace("HERE", str(place / "ran"))
    )
    ways = {"AutoConfig": "own_code.OwnConfig", "AutoModelForSequenceClassification": "own_code.Own"}
    (coded / "config.json").write_text(json.dumps({**SMALL, "model_type": "own", "auto_map": ways}))
    with pytest.raises(ConfigError, match=r"Set model\.trust_remote_code=true if you trust its code"):
        make(name=str(coded), weights=False)
    assert not (place / "ran").exists()
    model = make(name=str(coded), weights=False, trust_remote_code=True)
    assert (place / "ran").exists() and type(model).__name__ == "Own" and "runs with your rights" in model.begun_with


WORDS = [
    "data=text", "data.path=book.txt", "data.block=16", "model=transformers", "model.auto=causal",
    "batch.global_size=8", "threads=1", "wandb.mode=disabled", "optimizer.lr=0.05", "log_every=1", "eval_every=null",
    "+model.config.resid_pdrop=0.0", "+model.config.embd_pdrop=0.0", "+model.config.attn_pdrop=0.0",
]  # fmt: skip


@pytest.mark.soak
def test_a_run_from_a_directory_goes_on_and_is_read_without_it(place, monkeypatch):
    """All that follows the start needs no directory, and gives what transformers itself gives by these weights."""
    monkeypatch.chdir(place)
    shutil.copytree(place / "bytes", place / "moved")
    run = [*WORDS, "model.name=moved", "scheduler=constant"]
    said = train([*run, "hydra.run.dir=one", "max_steps=2"], place, name="io-one").ok().out()
    assert "weights    29 of 29 tensors from moved" in said, said
    shutil.rmtree(place / "moved")
    train([*run, "hydra.run.dir=one", "max_steps=4"], place, name="io-on").ok()
    assert summary(place / "one")["step"] == 4

    model = launcher.load("one")
    ids = torch.frombuffer(bytearray(b"a book of words, read"), dtype=torch.uint8).long()[None]
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, n_positions=32, vocab_size=256)).eval()
    (last,) = Path("one/checkpoints").glob("step_*4")
    theirs.load_state_dict(load_file(last / "model.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits)
    answer = command("evaluate", ["run_dir=one", "output=found.json", "threads=1"], place, name="io-ev").ok()
    assert "perplexity" in answer.out()
    loss = json.loads(Path("found.json").read_text())["metrics"]["loss"]
    tokens = torch.frombuffer(bytearray(Path("book.txt").read_bytes()), dtype=torch.uint8).long()
    with torch.no_grad():  # of a text that repeats itself each window is like the others
        scores = theirs(tokens[:-1][: 16 * 60].reshape(-1, 16)).logits
    wanted = F.cross_entropy(scores.flatten(0, 1), tokens[1 : 16 * 60 + 1])
    assert loss == pytest.approx(float(wanted), rel=0.05)


@pytest.mark.parametrize(
    ("model", "room"),
    [
        (transformers.BertModel(transformers.BertConfig(**SMALL, max_position_embeddings=24)), 24),
        (transformers.RobertaModel(transformers.RobertaConfig(**SMALL, max_position_embeddings=26)), 24),
        (transformers.GPT2Model(transformers.GPT2Config(**GPT, vocab_size=30, n_positions=24, pad_token_id=0)), 24),
    ],
)
def test_texts_of_more_tokens_than_positions_are_refused(model, room, tmp_path):
    """As many as the sentence says are taken, by the model itself, and one row of padding more is not."""
    model.save_pretrained(tmp_path / "m")
    facts = {"num_outputs": 3, "vocab_size": 30}
    with pytest.raises(
        ConfigError, match=rf"data\.max_tokens: texts may have 32 tokens, .*Set data\.max_tokens={room}"
    ):
        make(name=str(tmp_path / "m"), facts=facts | {"longest": 32})
    made = make(name=str(tmp_path / "m"), facts=facts | {"longest": room}).eval()
    ids = torch.full((2, room), 5)
    made({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with pytest.raises((IndexError, RuntimeError)):
        made({"input_ids": torch.full((2, room + 8), 5), "attention_mask": torch.ones(2, room + 8).long()})
    small = GPT if model.config.model_type == "gpt2" else {key: SMALL[key] for key in SMALL if key != "vocab_size"}
    new = make(type=model.config.model_type, facts=facts | {"longest": 1040}, config=small).eval()
    ids = torch.full((1, 1040), 5)
    new({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_positions_by_rotation_have_no_end(tmp_path):
    llama = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.LlamaConfig(**llama, vocab_size=30, max_position_embeddings=16, pad_token_id=0)
    transformers.LlamaModel(config).save_pretrained(tmp_path / "m")
    make(name=str(tmp_path / "m"), facts={"num_outputs": 3, "vocab_size": 30, "longest": 32})
