"""A program under another locale finds files with any name, and prints in the terminal's encoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.locales import locale_env

SRC = Path(__file__).parents[2] / "src"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from reprogpt.process.utf8 import restart_in_utf8_mode
restart_in_utf8_mode()
from pathlib import Path
from urllib.request import url2pathname
print(Path(url2pathname(sys.argv[2])).read_text(), sys.argv[3], "\\u5c71 \\xe9")
"""


@pytest.mark.parametrize(("charmap", "printed"), [("ISO-8859-1", "? é"), ("UTF-8", "山 é")])
def test_a_quoted_path_is_found_and_the_output_is_the_terminals(charmap: str, printed: str, tmp_path: Path) -> None:
    env = locale_env(tmp_path, "en_US", charmap)
    if "LOCPATH" not in env:
        pytest.skip("localedef makes no locale here")
    (tmp_path / "山田").write_text("found")
    path = (tmp_path / "山田").as_uri().removeprefix("file://")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, SRC, path, "é".encode(charmap)],
        env=os.environ | env,
        capture_output=True,
        check=False,
    )
    assert (done.stdout.decode(charmap), done.returncode) == (f"found é {printed}\n", 0), done.stderr
