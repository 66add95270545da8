"""Bounds of the sampling parameters in params.yaml, on the command line and in requests to a served model."""

MIN_TEMPERATURE = 0.001  # or 0; beyond these bounds logits / temperature leaves the range of float32
MAX_TEMPERATURE = 1000.0
TEMPERATURE_RANGE = f"0 or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
MAX_SEED = 2**63 - 1
MAX_NEW_TOKENS = 2**31 - 1
# tiktoken's time grows with the square of a word's length, and a million spaces exhaust its stack; for this many
# characters of any kind it needs less than a tenth of a second.
MAX_PROMPT_CHARACTERS = 100_000
# Per request to a served model, unless its configuration says otherwise. MLflow's server times out after 60 s.
DEFAULT_LIMITS: dict[str, int] = {"max_new_tokens": 4096, "max_prompts": 64, "max_seconds": 60}
MAX_TOP_K = 2**31 - 1


def is_valid_temperature(value: float) -> bool:
    """Whether value is 0 (greedy) or within the bounds."""
    return value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE
