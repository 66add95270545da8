"""The `dvc exp run --queue` lines that queue exactly the runs that are missing."""

from collections.abc import Iterable, Mapping, Sequence

from reprogpt.decide.stored_values import Level, as_number

MAX_SEEDS = 50  # more are not queued at a time


def queue_lines(
    keys: Sequence[str],
    seeds_of: Mapping[Level, Iterable[int]],
    levels: Sequence[Level],
    num_pairs: int,
    others: Mapping[str, str],
) -> list[str]:
    """Commands that give each of the levels at least num_pairs seeds in common.

    seeds_of: the seeds that each level has. Seeds that some level has come first, then new ones. others: further
    parameters to set. [] if nothing is missing.
    """
    has = {level: set(seeds_of[level]) for level in levels}
    known = sorted(set().union(*has.values()), key=lambda seed: (-sum(seed in has[level] for level in levels), seed))
    new = range(max(known, default=0) + 1, max(known, default=0) + 1 + num_pairs)
    seeds = sorted([*known, *new][:num_pairs])
    missing: dict[tuple[Level, ...], list[int]] = {}
    for seed in seeds:
        without = tuple(level for level in levels if seed not in has[level])
        if without:
            missing.setdefault(without, []).append(seed)
    return [line for without, of_these in missing.items() for line in _lines(keys, without, of_these, others)]


def _lines(
    keys: Sequence[str], levels: Sequence[Level], seeds: Sequence[int], others: Mapping[str, str]
) -> Iterable[str]:
    """One line for the levels of a single key; one a level for those of two, which are no product."""
    groups = [levels] if len(keys) == 1 else [[level] for level in levels]
    for group in groups:
        values = {key: ",".join(_quoted(level[n]) for level in group) for n, key in enumerate(keys)}
        values |= {key: _quoted(value) for key, value in others.items()} | {"seed": _seeds(seeds)}
        yield " ".join(["dvc exp run --queue", *(f"-S '{key}={value}'" for key, value in values.items())])


def _seeds(seeds: Sequence[int]) -> str:
    """Consecutive seeds as Hydra's range, whose end is excluded."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"range({seeds[0]},{seeds[-1] + 1})"
    return ",".join(map(str, seeds))


def _quoted(value: str) -> str:
    """A value as Hydra reads it: a text with other characters than those of a word in quotes."""
    if as_number(value) is not None or value.replace("_", "").replace("-", "").isalnum() or value == '""':
        return value
    escaped = value.replace('"', '\\"')
    return f'"{escaped}"'
