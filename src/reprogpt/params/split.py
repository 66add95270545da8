"""What the `split` stage reads from params.yaml."""

from pydantic import Field

from reprogpt.params.loader import Params


class SplitParams(Params):
    """How much of the corpus is trained on."""

    train_ratio: float = Field(gt=0, lt=1)  # share of characters, taken from the start
