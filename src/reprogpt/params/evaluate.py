"""What the `evaluate` stage reads from params.yaml."""

from pydantic import Field, field_validator

from reprogpt.params.sampling_limits import MAX_TOP_K, TEMPERATURE_RANGE, is_valid_temperature
from reprogpt.params.shared import SharedParams

MAX_EVAL_TOKENS = 2**63 - 1


class EvaluateParams(SharedParams):
    """How final metrics are computed and extra samples drawn; the model's shape comes from its config.json."""

    temperature: float = Field(description=TEMPERATURE_RANGE)
    top_k: int = Field(ge=1, le=MAX_TOP_K)
    stop_at_end_of_text: bool
    eval_max_tokens: int = Field(ge=0, le=MAX_EVAL_TOKENS)

    @property
    def rows_per_evaluation(self) -> int:
        """Rows per forward pass when complete splits are evaluated; the same for any number of processes."""
        return self.batch_size // self.accumulate

    @field_validator("temperature")
    @classmethod
    def _is_within_bounds(cls, temperature: float) -> float:
        if not is_valid_temperature(temperature):
            raise ValueError(f"is not allowed; allowed: {TEMPERATURE_RANGE}")
        return temperature
