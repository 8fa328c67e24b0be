import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from deepdistill_resources import token_counts as module
from deepdistill_resources.errors import ModelError
from deepdistill_resources.token_counts import token_counts


@pytest.fixture
def model(tmp_path):
    """A directory with a tokenizer of whole words that would put a mark before each text."""
    tokenizer = Tokenizer(models.WordLevel({"[begin]": 0, "[other]": 1, "what": 2, "is": 3, "+": 4}, "[other]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[begin] $A", special_tokens=[("[begin]", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[begin]").save_pretrained(tmp_path)
    return tmp_path


def test_tokens_are_counted_without_special_ones(model):
    assert token_counts(model, ["what is 7 + 8", "", "求 x"]) == [5, 0, 2]


def test_texts_are_taken_in_blocks_and_in_order(model, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    assert token_counts(model, ["what " * count for count in range(10)]) == list(range(10))


def test_a_directory_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer that loads"):
        token_counts(tmp_path / "empty", ["what"])
