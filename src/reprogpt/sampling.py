"""What may be asked of a sampled text, wherever it is asked: on the command line or of a served model."""

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.001, 1000.0  # but for 0: beyond these, logits leave the range of float32
MOST_SEED = 2**63 - 1


def is_temperature(value: float) -> bool:
    """Whether it is 0, the likeliest token each time, or within the bounds."""
    return value == 0 or LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE
