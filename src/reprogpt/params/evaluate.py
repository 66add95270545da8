"""What the `evaluate` stage reads from params.yaml."""

from pydantic import Field

from reprogpt.params.shared import SharedParams


class EvaluateParams(SharedParams):
    """How the extra samples are drawn; the model's own shape comes from its checkpoint."""

    temperature: float = Field(ge=0)
    top_k: int = Field(ge=1)
