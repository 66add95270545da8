"""How a program exits."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from reprogpt.process.run import RESTORE_ADVICE
from tests.locales import locale_env

SRC = Path(__file__).parents[2] / "src"


SAMPLE = "吾輩は猫である… \ufffd é \udce3"


def exit_of(body: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program whose main function has this body, with `env` besides the present environment."""
    program = (
        f"import os, signal, sys, time; sys.path.insert(0, {str(SRC)!r})\n"
        f"from reprogpt.errors import ParamsError\n"
        f"from reprogpt.process.run import run_program\n"
        f"def main():\n    {body}\nrun_program(main)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        encoding=(env or {}).get("OUTPUT"),
        env=os.environ | (env or {}),
        timeout=60,
    )


@pytest.mark.parametrize(("result", "code"), [("None", 0), ("'done'", 0), ("0", 0), ("3", 3)])
def test_a_program_exits_with_0_or_the_integer_that_main_returns(result: str, code: int) -> None:
    done = exit_of(f"return {result}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_pipeline_error_exits_with_one_message_and_2() -> None:
    done = exit_of("raise ParamsError('seed: -1 is not allowed')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "\nerror: seed: -1 is not allowed\n")


def test_ctrl_c_exits_with_130_and_no_traceback() -> None:
    done = exit_of(
        "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_sigterm_exits_with_143_and_no_traceback() -> None:
    done = exit_of("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)")
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "\nterminated\n")


def test_sigterm_is_not_caught_as_an_exception_and_runs_cleanup() -> None:
    done = exit_of(
        "\n    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
        "\n    except Exception: print('swallowed')"
        "\n    finally: print('cleaned up')"
    )
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")


@pytest.mark.parametrize(
    ("lock", "params", "is_shown"),
    [
        ("{stages: {train: {params: {params.yaml: {seed: 1}}}}}", "seed: 2", True),
        ("{stages: {train: {params: {params.yaml: {seed: 1}}}}}", "seed: [", True),
        ("{stages: {train: {params: {params.yaml: {seed: 1}}}}}", "{seed: 1, sed: 2}", True),
        ("{stages: {train: {params: {params.yaml: {seed: 1}}}}}", "seed: 1", False),  # a full disk, say
        ("{stages: {fetch: {}}}", "seed: 2", False),
        ("", "seed: 2", False),
    ],
)
def test_the_advice_to_restore_a_value_is_given_where_one_differs_from_the_last_result(
    tmp_path: Path, lock: str, params: str, is_shown: bool
) -> None:
    (tmp_path / "dvc.lock").write_text(lock)
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {params: [seed]}}")
    program = "from reprogpt.errors import DataError\nimport stages\ndef main():\n    raise DataError('no')\n"
    env = os.environ | {"DVC_STAGE": "train", "PYTHONPATH": str(SRC.parent)}
    program = f"import stages\n{program}stages.run_stage(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stderr == "\nerror: no\n" + (f"{RESTORE_ADVICE}\n" if is_shown else "")


def test_libraries_say_nothing_of_a_home_folder_that_cannot_be_written() -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPLCONFIG"))}
    env |= {"HOME": "/proc/none", "PYTHONPATH": str(SRC.parent)}
    done = subprocess.run(
        [sys.executable, "-c", "import stages, matplotlib.pyplot"], cwd=SRC.parent, env=env, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_imports_leaves_no_traceback(number: int, code: int) -> None:
    """Before run_program: imports take seconds."""
    program = (
        "import os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import stages; os.kill(os.getpid(), {int(number)}); time.sleep(30)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_bug_keeps_its_traceback() -> None:
    done = exit_of("return {}['absent']")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError: 'absent'" in done.stderr


@pytest.mark.parametrize(
    ("name", "charmap", "printed"),
    [
        ("en_US", "ISO-8859-1", "???????? ? é ?\n"),
        ("ja_JP", "EUC-JP", "吾輩は猫である… ? é ?\n"),
        ("en_US", "UTF-8", "吾輩は猫である… \ufffd é ?\n"),
    ],
)
def test_a_character_that_the_output_cannot_encode_is_a_question_mark(
    name: str, charmap: str, printed: str, tmp_path: Path
) -> None:
    env = locale_env(tmp_path, name, charmap) | {"OUTPUT": charmap}
    done = exit_of(f"print({SAMPLE!a})", env)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


@pytest.mark.parametrize("charmap", ["cp932", "ascii"])
def test_an_encoding_of_the_streams_alone_stops_no_program(charmap: str) -> None:
    done = exit_of(f"print({SAMPLE!a})", {"PYTHONIOENCODING": charmap, "OUTPUT": charmap})
    assert (done.returncode, done.stdout.count("?") > 1, done.stderr) == (0, True, "")


def test_output_that_is_closed_is_no_error() -> None:
    assert exit_of("return 0", {"PYTHONIOENCODING": "ascii"}).returncode == 0
    closed = [
        sys.executable,
        "-c",
        "import sys; sys.stdout = None; from reprogpt.process.run import run_program as r; r(int)",
    ]
    assert subprocess.run(closed, check=False, env=os.environ | {"PYTHONPATH": str(SRC)}).returncode == 0


def test_a_lost_terminal_exits_as_sigterm_does_once() -> None:
    done = exit_of("os.kill(os.getpid(), signal.SIGHUP); time.sleep(30)")
    assert (done.returncode, done.stderr) == (143, "\nterminated\n")
    twice = "try: os.kill(os.getpid(), signal.SIGHUP)\n    finally: os.kill(os.getpid(), signal.SIGHUP); print('ended')"
    done = exit_of(twice)
    assert (done.returncode, done.stdout) == (143, "ended\n")
