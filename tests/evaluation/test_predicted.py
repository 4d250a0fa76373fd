"""A model's prediction of a text in bits, against transformers."""

from __future__ import annotations

import math

import pytest
import torch
from families import SHAPE, randomized
from transformers import Qwen2Config, Qwen2ForCausalLM

from jaxrl.errors import UserError
from jaxrl.evaluation.predicted import predicted_bits
from jaxrl.runs.tokenizer import train_tokenizer

TEXTS = ("3 4 5 6", "", "7 " * 60)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = Qwen2Config(**{**SHAPE, "vocab_size": 300})
    hf = randomized(lambda: Qwen2ForCausalLM(config))
    hf.save_pretrained(folder)
    tokenizer = train_tokenizer(["3 4 5 6 7 8 9 user assistant"] * 3, 280)
    assert len(tokenizer) <= hf.config.vocab_size
    tokenizer.save_pretrained(folder)
    return folder, hf, tokenizer


def test_bits_are_those_of_transformers(model):
    folder, hf, tokenizer = model
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for text, found in zip(TEXTS, predicted_bits(str(folder), TEXTS)):
        tokens = torch.tensor([[start, *tokenizer.encode(text, add_special_tokens=False)]])
        with torch.no_grad():
            logprobs = torch.log_softmax(hf(tokens).logits.double(), -1)[0, :-1]
        expected = -logprobs.gather(1, tokens[0, 1:, None]).sum().item() / math.log(2)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_text_that_is_too_long_is_named(model):
    folder, hf, _ = model
    with pytest.raises(UserError, match=r"text 1 has \d+ tokens, more than the model's 256 positions"):
        list(predicted_bits(str(folder), ["1", "12 " * hf.config.max_position_embeddings]))
