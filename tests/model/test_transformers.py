"""What `transformers` makes of a directory that train wrote, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reprogpt.data.tokens import load_encoding, write_tokenizer
from reprogpt.model.generate import generate
from reprogpt.model.gpt2_format import save_model
from tests.tiny import tiny_model

PROMPT = "Every effort moves you"
END = "<|endoftext|>"
TEXTS = {
    "empty": "",
    "plain": PROMPT,
    "spaces": "  two  spaces \n\n\t and  trailing  ",
    "only white space": " \n",
    "line ends": "\r\n\r\na\rb",
    "other spaces": "no\u00a0break\u2003em\u200bzero\u3000",
    "contractions": "don't DON'T we'll I\u2019m foo .bar , n't do not's",
    "digits": "1234567890 3.14 ½ Ⅷ",
    "quotes": "“naïve” ﬁ Å",
    "composed or not": "e\u0301 é",
    "no Latin": "漢字 हिन्दी ไทย عربي \u202e\u05e9\u05dc\u05d5\u05dd",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 🙂",
    "no text": "\x00\x01\x7f\ufeff\ufffd\U0010ffff",
    "long": "a" * 300,
    "nearly the end": "<|endoftext| > <|ENDOFTEXT|> <|endoftext",
}
# Run by itself: the switch must be set before the library is loaded.
SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, prompt = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(ids).logits
generator = pipeline("text-generation", model=folder)
[made] = generator(prompt, max_new_tokens=6, do_sample=False)
[longest] = generator(prompt)
[cut] = generator(prompt * 40, max_new_tokens=6, handle_long_generation="hole")
found = {"ids": ids.tolist(), "logits": logits.tolist(), "text": made["generated_text"]}
print(json.dumps(found | {"longest": longest["generated_text"], "cut": cut["generated_text"]}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As train writes: a tiny model with GPT-2's vocabulary, and the tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save_model(path, tiny_model(vocab_size=50257, context_length=64))
    write_tokenizer(path, 64)
    return path


def test_model_tokenizer_and_pipeline_work_offline_and_give_our_results(folder: Path, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), PROMPT],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    encoding, model = load_encoding("gpt2"), tiny_model(vocab_size=50257, context_length=64).eval()
    ids = encoding.encode_ordinary(PROMPT)
    assert found["ids"] == [ids]
    with torch.no_grad():
        assert torch.allclose(torch.tensor(found["logits"]), model(torch.tensor([ids])), rtol=0, atol=1e-5)
    assert found["text"] == PROMPT + encoding.decode(list(generate(model, ids, 6)))
    assert found["longest"].startswith(PROMPT) and len(found["longest"]) > len(PROMPT)
    assert found["cut"].startswith(PROMPT * 40) and len(found["cut"]) > len(PROMPT * 40)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_tokens_are_tiktokens_and_give_the_text_back(folder: Path, text: str) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_encoding("gpt2")
    ids = ours.encode_ordinary(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text


def test_the_end_of_text_is_one_token_unless_asked_otherwise(folder: Path) -> None:
    """As in tiktoken where special tokens are allowed; a corpus is encoded as where they are not."""
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_encoding("gpt2")
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == (END, ours.eot_token, ours.n_vocab)
    for text in (END, f"a{END}b", f" {END}\n{END}"):
        assert theirs(text)["input_ids"] == ours.encode(text, allowed_special={END})
        assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode_ordinary(text)
        assert theirs.decode(ours.encode(text, allowed_special={END})) == text
