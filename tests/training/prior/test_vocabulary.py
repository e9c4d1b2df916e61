import warnings

import pytest
from transformers import CLIPTokenizer

from training.prior.vocabulary import Vocabulary, build_tokenizer, save_tokenizer, split_words

# 'and' lies inside 'banana', 'an' and 'a' begin both: merges of one word must not break another
WORDS = sorted({"a", "an", "and", "banana", "band", "hair", "chair", "air", "middle", "-", ",", "aged"})


@pytest.mark.parametrize("files", ["all", "vocab and merges"])
def test_every_known_word_is_one_token_after_the_round_trip(tmp_path, files):
    save_tokenizer(build_tokenizer(WORDS, 12), WORDS, tmp_path)
    if files != "all":
        (tmp_path / "tokenizer.json").unlink()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.tokenize(word) for word in WORDS] == [[word + "</w>"] for word in WORDS]
    ids = tokenizer("a middle-aged Banana, chair", padding="max_length", max_length=12).input_ids
    assert len(ids) == 12
    assert ids[0] == tokenizer.bos_token_id and ids[8:] == [tokenizer.eos_token_id] * 4


def test_any_text_has_tokens():
    tokenizer = build_tokenizer(WORDS, 12)
    assert (
        tokenizer.decode(tokenizer("zebra élan 7!").input_ids, skip_special_tokens=True) == "zebra élan 7 !"
    )


def test_split_words():
    assert split_words("A middle-aged man, 42.") == ["a", "middle", "-", "aged", "man", ",", "4", "2", "."]


def test_an_unknown_word_is_left_out_and_warned_about_once():
    vocabulary = Vocabulary(["a", "man", "with", "beard", "mustache", ","], name="the prior p")
    with pytest.warns(UserWarning) as caught:
        assert vocabulary.known_part("A man with moustache") == "a man with"
    message = str(caught[0].message)
    assert "the prior p does not know 'moustache'" in message
    assert "moustache -> mustache" in message
    assert "It knows: a, beard, man, mustache, with." in message
    assert "Stable Diffusion" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vocabulary.known_part("moustache") == ""
        assert vocabulary.known_part("A Man") == "A Man"
        assert vocabulary.known_part("a man, with beard!!") == "a man , with beard"  # a sign means little


def test_an_open_vocabulary_knows_everything():
    assert Vocabulary().known_part("a zebra in the rain") == "a zebra in the rain"
