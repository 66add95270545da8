"""Messages for a person: on lines of their own, on standard error if there is one."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.messages import print_message
from reprogpt.progress import TrainingProgress

SRC = Path(__file__).parents[1] / "src"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_has_lines_of_its_own_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    training_progress = TrainingProgress(100)
    print_message("the store is away")
    training_progress.close()
    line = next(line for line in terminal.getvalue().split("\n") if "the store is away" in line)
    assert line.split("\r")[-1] == "the store is away"  # the bar's line is cleared before
    print_message("and without a bar")
    assert terminal.getvalue().endswith("and without a bar\n")


@pytest.mark.parametrize(("before", "printed"), [("", "one\ntwo\n"), ("sys.stderr = None", "")])
def test_without_a_bar_lines_are_printed_as_they_are_and_nothing_if_standard_error_is_closed(
    before: str, printed: str
) -> None:
    """In a process of its own, which has not imported tqdm."""
    program = (
        f"import sys; sys.path.insert(0, {str(SRC)!r}); {before}\n"
        "from reprogpt.messages import print_message\n"
        "print_message('one\\ntwo')\n"
        "assert 'tqdm' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", printed)
