"""What a repeat says of the recorded run: whether it can be tried, what became of each out, what explains a
difference. Values in, values out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reprogpt.commands.chain import HOLDS, NOT_HERE, UNLISTED, Link, check_chain
from reprogpt.commands.differences import Change, changes
from reprogpt.pipeline import out_paths

SAME, DIFFERS, MISSING = "same", "DIFFERS", "missing"
OUT_WIDTH = 28  # the longest path of an out
# Of the environment as MLflow's tags hold it, the likeliest to change bits first. The last three are not known to.
LIKELIEST = ("device", "matmul", "instruction_set", "torch", "numpy", "threads", "tiktoken", "python")
SELDOM = ("threads", "tiktoken", "python")
# What the bits of a stage's outs can depend on, where that is not all of it: only train and evaluate use torch.
DEPENDS_ON = {"fetch": (), "split": ("python",), "tokenize": ("numpy", "tiktoken", "python"), "plot": ("python",)}
WITHOUT_PINS = ("fetch", "split")  # the stages whose deps don't include requirements.lock
CAUSE = "(recorded -> here), the likeliest first"


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
    here: the same of the repeat. pins: requirements.lock -> what is installed, where that is another version.
    text: the corpus of the recorded run -> of the repeat, in words; None if they are the same.
    """

    recorded: Mapping[str, str] | None
    here: Mapping[str, str]
    pins: Sequence[Change] = field(default_factory=list)
    text: Change | None = None

    @property
    def known_pins(self) -> list[Change]:
        """The pins that say more than the recorded run's own tags do."""
        return [pin for pin in self.pins if self.recorded is None or pin.key not in self.recorded]


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
        return f"NOT the same: {num_other} of the {len(compared)} outs {of} are not as dvc.lock records them"
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
    where = f"the difference begins at {' and '.join(begins)}"
    if "fetch" in begins and circumstances.text:
        return [f"{where}: another text was read (recorded -> here)", _line(circumstances.text)]
    relevant = {key for stage in begins for key in DEPENDS_ON.get(stage, LIKELIEST)}
    found = [change for change in environment_changes(circumstances) if change.key in relevant]
    pins = circumstances.known_pins if any(stage not in WITHOUT_PINS for stage in begins) else []
    lines = []
    if found or pins:
        sure = pins or any(change.key not in SELDOM for change in found)
        words = "what explains it" if sure else "what may explain it, though it seldom changes bits"
        lines += [f"{where}; {words} {CAUSE}", *map(_line, found), *_pin_lines(pins)]
    if circumstances.recorded is None:
        here = ", ".join(f"{key} {circumstances.here[key]}" for key in LIKELIEST if key in circumstances.here)
        lines += [
            "" if lines else where,
            "the environment of the recorded run is not known here: no MLflow run made its weights. Here it is",
            f"  {here}",
        ]
    elif not lines:
        lines = [
            where,
            "nothing explains it: in all that is recorded and can matter there, the environment is the recorded",
            "one; so this is a bug, or hardware trouble",
        ]
    return lines


def survived(circumstances: Circumstances) -> list[str]:
    """Where nothing differs but the environment: in what, as lines; [] where that is as recorded or not known."""
    found = [*map(_line, environment_changes(circumstances)), *_pin_lines(circumstances.known_pins)]
    return ["the environment is another one, which changed nothing (recorded -> here)", *found] if found else []


def environment_changes(circumstances: Circumstances) -> list[Change]:
    """Where the environment is not the recorded one, in the order of LIKELIEST; [] if that is not known."""
    return [] if circumstances.recorded is None else changes(LIKELIEST, circumstances.recorded, circumstances.here)


def _pin_lines(pins: Sequence[Change]) -> list[str]:
    return ["  and of the versions pinned by requirements.lock", *map(_line, pins)] if pins else []


def _line(change: Change) -> str:
    a, b = ("not known" if value is None else value for value in (change.a, change.b))
    return f"  {change.key}: {a} -> {b}"
