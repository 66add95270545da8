"""A question on the terminal before something is done that can't be undone."""


def confirmed(question: str) -> bool:
    """Whether the answer is yes; no where there is no terminal."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
