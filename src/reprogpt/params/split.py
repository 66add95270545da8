"""What the `split` stage reads from params.yaml."""

from pydantic import Field

from reprogpt.params.loader import Params


class SplitParams(Params):
    """How much of the corpus is used for training."""

    train_ratio: float = Field(gt=0, lt=1)  # share of characters, from the start
