"""Texts become samples of one length, and for a causal language model the next tokens are the labels."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import (
    Data,
    Network,
    capture,
    check_data,
    float_logits,
    load_data,
    measure_samples,
    with_next_tokens,
)
from apportion.network.tokens import cut_windows

sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")
ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))

TEXT = "once upon a time there was a little dog . the dog was happy and the sun was up ."
WORDS = TEXT.split()
VOCABULARY = sorted(set(WORDS))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of words that would cut texts off after four tokens."""
    vocabulary = {word: number for number, word in enumerate([*VOCABULARY, "[UNK]", "[BOS]"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    bos = ("[BOS]", vocabulary["[BOS]"])
    made.post_processor = tokenizers.processors.TemplateProcessing("[BOS] $A", special_tokens=[bos])
    made.enable_truncation(4)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("\n".join(" ".join(WORDS) for _ in range(3)))
    return path


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_a_text_is_cut_into_samples_one_after_the_other_without_special_tokens(
    tokenizer: Path, text: Path, limit: int | None
) -> None:
    data = load_data(str(text), tokenizer=tokenizer, context=7, limit=limit)
    ids = [VOCABULARY.index(word) for word in 3 * WORDS]
    samples = min(len(ids) // 7, limit or len(ids))
    assert data.inputs.tolist() == [ids[7 * i : 7 * i + 7] for i in range(samples)]
    assert data.labels is None
    same = load_data(str(text), tokenizer=tokenizer / "tokenizer.json", context=7, limit=limit)
    assert torch.equal(same.inputs, data.inputs)


@given(st.integers(2, 40), st.integers(2, 200))
def test_windows_are_the_sequence_without_a_shorter_end(context: int, count: int) -> None:
    ids = np.arange(count)
    if count < context:
        with pytest.raises(InputError, match=f"has {count} tokens, and a sample has {context}"):
            cut_windows(ids, context, "ids")
        return
    windows = cut_windows(ids, context, "ids")
    assert windows.shape[1] == context
    assert windows.flatten().tolist() == list(range(count - count % context))


def test_an_array_that_is_one_sequence_is_cut_and_one_of_samples_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, inputs=np.arange(10, dtype=np.uint16), wide_inputs=np.arange(12).reshape(2, 6))
    assert load_data(str(path), context=5).inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert load_data(f"{path}:wide", context=3).inputs.shape == (2, 6)
    with pytest.raises(InputError, match="one sequence of 10 tokens; say with --context"):
        load_data(str(path))
    with pytest.raises(InputError, match="context is 1 tokens"):
        load_data(str(path), context=1)


def test_texts_and_tokenizers_that_cannot_be_read_are_refused(
    tokenizer: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nothing.txt"):
        load_data(str(tmp_path / "nothing.txt"), tokenizer=tokenizer, context=4)
    with pytest.raises(InputError, match="is a text; give --tokenizer"):
        load_data(str(text), context=4)
    with pytest.raises(InputError, match=r"no tokenizer.json or tokenizer.model in .*save_pretrained"):
        load_data(str(text), tokenizer=tmp_path, context=4)
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        load_data(str(text), tokenizer=broken, context=4)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 " * 9)
    with pytest.raises(InputError, match="texts must be UTF-8"):
        load_data(str(latin), tokenizer=tokenizer, context=4)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r'pip install "apportion\[transformers\]"'):
        load_data(str(text), tokenizer=tokenizer, context=4)


def test_sentencepiece_models_cut_texts_without_special_tokens(tmp_path: Path, text: Path) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=written, model_type="char", vocab_size=24, minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    data = load_data(str(text), tokenizer=tmp_path, context=7)
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = data.inputs.flatten().tolist()
    assert len(ids) > 3 * len(TEXT) - 7
    assert processor.bos_id() not in ids
    assert processor.decode(ids).startswith(TEXT[:60])
    same = load_data(str(text), tokenizer=tmp_path / "tokenizer.model", context=7)
    assert torch.equal(same.inputs, data.inputs)


def test_sentencepiece_models_that_cannot_be_read_are_refused(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "spm.model"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"cannot read the tokenizer .*spm.model"):
        load_data(str(text), tokenizer=broken, context=4)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r'pip install "apportion\[sentencepiece\]"'):
        load_data(str(text), tokenizer=broken, context=4)


def test_a_real_sentencepiece_model_gives_the_ids_that_it_was_trained_with() -> None:
    text, model, ids = (
        ASSETS / name for name in (
            "tinystories_sample.txt", "babyllama105.tokenizer.model", "babyllama105.ids.npz"
        )
    )  # fmt: skip
    if not model.exists():
        pytest.skip(
            "no babyllama105.tokenizer.model in the assets folder; set APPORTION_ASSETS to one that has it"
        )
    data = load_data(str(text), tokenizer=model, context=64, limit=4)
    with np.load(ids) as arrays:
        # Behind a mark of the beginning.
        expected = arrays["tinystories_calib"][1:65].astype(np.int64)
    assert data.inputs[0].tolist() == expected.tolist()


class Model(nn.Module):
    """A mean over the tokens so far, or over all of them."""

    def __init__(self, causal: bool, classes: int = 12) -> None:
        super().__init__()
        self.causal = causal
        self.embedding = nn.Embedding(12, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        places = torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.head(x.cumsum(1) / places if self.causal else x + x.mean(1, keepdim=True))


def captured(causal: bool, classes: int = 12) -> tuple[Network, Data]:
    torch.manual_seed(0)
    ids = torch.randint(0, 12, (6, 9))
    return capture(Model(causal, classes), ids), Data(ids, None, "ids")


def test_the_labels_of_a_causal_language_model_are_the_next_tokens() -> None:
    network, data = captured(causal=True)
    labelled = with_next_tokens(network, data)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [sample[1:] for sample in data.inputs.tolist()]
    check_data(network, labelled)
    mine = Data(data.inputs, data.inputs, "mine")
    assert with_next_tokens(network, mine) is mine


@pytest.mark.parametrize(("causal", "classes"), [(False, 12), (True, 5)])
def test_a_network_that_sees_later_tokens_or_has_other_classes_gets_no_labels(
    causal: bool, classes: int
) -> None:
    network, data = captured(causal, classes)
    assert with_next_tokens(network, data) is data


def test_perplexity_is_that_of_the_next_tokens_of_each_sample() -> None:
    network, data = captured(causal=True)
    data = with_next_tokens(network, data)
    assert data.labels is not None
    logits = float_logits(network, data)
    changed = {"head.weight": network.tensors["head.weight"] + 0.1}
    with torch.inference_mode():
        other = network.run(data.inputs, tensors=changed)
    quality = measure_samples(network, data, changed, logits).quality()

    def reference(given: Tensor) -> tuple[float, float]:
        costs, right = [], []
        for sample, ids in zip(given, data.inputs, strict=True):
            for place in range(len(ids) - 1):
                p = sample[place].double().softmax(0)
                costs.append(-float(p[ids[place + 1]].log()))
                right.append(int(p.argmax()) == int(ids[place + 1]))
        return float(np.exp(np.mean(costs))), float(np.mean(right))

    # Double precision on one side, log_softmax of doubles on the other.
    assert (quality.perplexity, quality.accuracy) == pytest.approx(reference(other), rel=1e-9)
    assert (quality.float_perplexity, quality.float_accuracy) == pytest.approx(reference(logits), rel=1e-9)
