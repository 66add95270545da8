"""What the `tokenize` stage reads from params.yaml."""

from typing import Literal

from reprogpt.params.loader import Params


class TokenizeParams(Params):
    """How text becomes token ids."""

    # The only encoding whose vocabulary is installed with the project and fits the GPT-2 checkpoint.
    encoding: Literal["gpt2"]
