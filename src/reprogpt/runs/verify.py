"""The result of running recorded stages again: obstacles, the comparison of outs, and what explains a difference.

Values in, values out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from reprogpt.dvc.pipeline import out_paths
from reprogpt.runs.compare import Change, changes
from reprogpt.runs.links import HOLDS, NOT_HERE, UNLISTED, Link, check_links
from reprogpt.tracking.log.environment import CPU_TAGS, ENVIRONMENT_TAGS, RARELY_RELEVANT, STAGE_DEPENDENCIES

WIDTH = 80
SAME = "same"
DIFFERS = "DIFFERS"
MISSING = "missing"
OUT_WIDTH = 28  # the longest path of an out


@dataclass(frozen=True)
class OutComparison:
    """An out with its digest in dvc.lock, and its digest after the rerun (None if the rerun did not make it)."""

    stage: str
    out: str
    recorded: str
    found: str | None

    @property
    def status(self) -> str:
        """SAME, DIFFERS or MISSING."""
        if self.found is None:
            return MISSING
        return SAME if self.found == self.recorded else DIFFERS


@dataclass(frozen=True)
class RunEnvironments:
    """The environments of the recorded run and of the rerun.

    recorded: tags of the MLflow run that trained the recorded weights; None if there is none in the store.
    here: tags of the rerun. pins: packages whose installed version differs from requirements.lock.
    text: the corpus of the recorded run and of the rerun, described; None if they are the same.
    """

    recorded: Mapping[str, str] | None
    here: Mapping[str, str]
    pins: Sequence[Change] = field(default_factory=list)
    text: Change | None = None

    def changes(self, stages: Iterable[str]) -> list[Change]:
        """The differences between both environments that these stages depend on, the likeliest cause first.

        A pin stands for the recorded version only if the recorded run has no tag for it. The processor is compared
        only if the recorded run has its tags: older runs don't.
        """
        keys = depended_on(stages)
        recorded = self.recorded or {}
        comparable = [key for key in keys if key in recorded or key not in CPU_TAGS]
        tags = [] if self.recorded is None else changes(comparable, recorded, self.here)
        pins = [Change(pin.key, f"{pin.a} (pinned)", pin.b) for pin in self.pins if pin.key not in recorded]
        found = {change.key.lower(): change for change in [*tags, *pins]}
        return [found[key] for key in keys if key in found]


def depended_on(stages: Iterable[str]) -> list[str]:
    """The tags and packages that the stages depend on, the likeliest cause of a difference first."""
    return list(dict.fromkeys(key for stage in stages for key in STAGE_DEPENDENCIES.get(stage, ENVIRONMENT_TAGS)))


def obstacles(
    lock: Mapping[str, Any],
    stages: Mapping[str, Any],
    params: Mapping[str, Any],
    digest: Callable[[str], str | None],
    repeated: Sequence[str],
) -> dict[str, list[str]]:
    """What prevents the recorded run of the stages `repeated` from being rerun, with the stages concerned.

    lock, stages: the `stages` of dvc.lock and dvc.yaml. digest: path -> digest of the workspace's file.
    Files that the rerun makes itself are not checked in the workspace: for them dvc.lock must only be consistent.
    """
    made = {path for stage in repeated for path in out_paths(stages[stage])}
    chain = check_links(
        {stage: lock[stage] for stage in repeated if stage in lock},
        {stage: stages[stage] for stage in repeated},
        params,
        lambda path: None if path in made else digest(path),
    )
    found: dict[str, list[str]] = {}
    for links in chain:
        if links.stage not in lock:
            found.setdefault("not in dvc.lock: it never ran", []).append(links.stage)
        broken = [link for link in links.inputs if link.status != HOLDS]
        broken += [link for link in links.outs if link.recorded is None or link.found == UNLISTED]
        for link in broken:
            found.setdefault(_obstacle(link), []).append(links.stage)
    return found


def _obstacle(link: Link) -> str:
    if link.status == NOT_HERE:
        return f"{link.what}: not here"
    if link.recorded is None:
        return f"{link.what}: not in dvc.lock"
    if link.what.startswith("dep ") and link.found != UNLISTED:
        return f"{link.what}: other contents than recorded"
    return f"{link.what}: {link.recorded} -> {link.found}"


def table(compared: Iterable[OutComparison]) -> list[str]:
    """A line per out under its stage, with a second line where the digest found differs."""
    lines = ["  status    out                           md5 in dvc.lock (and found)"]
    stage = ""
    for one in compared:
        if one.stage != stage:
            stage = one.stage
            lines += ["", stage]
        lines.append(f"  {one.status:<8}  {one.out:<{OUT_WIDTH}}  {one.recorded}")
        if one.status != SAME:
            lines.append(f"            {'found':<{OUT_WIDTH}}  {one.found or 'nothing'}")
    return lines


def conclusion(compared: Sequence[OutComparison]) -> str:
    """One line that claims only what was compared."""
    stages = list(dict.fromkeys(one.stage for one in compared))
    of = f"of stage {stages[0]}" if len(stages) == 1 else f"of {len(stages)} stages"
    num_other = sum(one.status != SAME for one in compared)
    if num_other:
        verb = "is" if num_other == 1 else "are"
        return f"NOT the same: {num_other} of {len(compared)} outs {of} {verb} not as dvc.lock records"
    return f"the same: all {len(compared)} outs {of} have the digests that dvc.lock records"


def origins(compared: Iterable[OutComparison], stages: Mapping[str, Any]) -> list[str]:
    """The stages at which a difference begins: an out differs although all inputs are the same.

    stages: the `stages` of dvc.yaml.
    """
    other = [one for one in compared if one.status != SAME]
    outs = {one.out for one in other}
    return [stage for stage in dict.fromkeys(one.stage for one in other) if not outs & set(stages[stage]["deps"])]


def explanation(begins: Sequence[str], circumstances: RunEnvironments) -> list[str]:
    """What explains a difference that begins at these stages, as lines, or that nothing known does."""
    lines = [f"the difference begins at {' and '.join(begins)}"]
    if "fetch" in begins and circumstances.text:
        return [*lines, "another text was read (recorded -> here)", _line(circumstances.text)]
    found = circumstances.changes(begins)
    if found:
        is_likely = any(change.key not in RARELY_RELEVANT for change in found)
        heading = "this explains it" if is_likely else "this may explain it, though it seldom changes bits"
        lines += [f"{heading} (recorded -> here), the likeliest first", *map(_line, found)]
    if circumstances.recorded is None:
        here = [f"{key} {circumstances.here[key]}" for key in depended_on(begins) if key in circumstances.here]
        lines += [
            "no MLflow run in this store trained the recorded weights, so their environment is",
            "known only by the versions pinned in requirements.lock; the present one is",
            *wrap(", ".join(here), WIDTH, initial_indent="  ", subsequent_indent="  "),
        ]
    elif not found:
        lines += [
            "nothing explains it: the environment is the recorded one in everything that is known",
            "to matter; so this is a bug, or faulty hardware",
        ]
    return lines


def survived(stages: Iterable[str], circumstances: RunEnvironments) -> list[str]:
    """Differences of the environment that changed no out, as lines; [] if none is known."""
    found = circumstances.changes(stages)
    return ["the environment differs, which changed nothing (recorded -> here)", *map(_line, found)] if found else []


def _line(change: Change) -> str:
    a, b = ("not known" if value is None else value for value in (change.a, change.b))
    return f"  {change.key}: {a} -> {b}"
