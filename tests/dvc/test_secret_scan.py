"""What looks like a secret in code, and what does not."""

from pathlib import Path

import pytest

from reprogpt.dvc.code_patch import stage_code
from reprogpt.dvc.secret_scan import secret_in

ROOT = Path(__file__).resolve().parents[2]
HEX = "0123456789abcdef"  # tokens are put together here: written out, scanners would report this file


@pytest.mark.parametrize(
    "line",
    [
        "PASSWORD = 'hunter2'",
        'db_passwd: str = r"hunter2"',
        "client(user, password='hunter2')",
        'SETTINGS = {"client_secret": "hunter2"}',
        "os.environ['MLFLOW_TRACKING_PASSWORD'] = 'hunter2'",
        'WANDB_API_KEY="hunter2"',
        "+API_TOKEN = (\n+    'hunter2'\n+)",
        "awsAccessKey = 'hunter2'",
        "STORE = 'postgresql://mlflow:hunter2@db/mlflow'",
        "-----BEGIN RSA PRIVATE " + "KEY-----",
        "x = 'AKIA" + "ABCDEFGHIJKLMNOP'",
        "x = 'DefaultEndpointsProtocol=https;AccountKey=" + HEX * 2 + "=='",
        "x = 'ghp_" + HEX * 2 + "'",
        "x = 'github_pat_" + HEX * 2 + "'",
        "x = 'glpat-" + HEX * 2 + "'",
        "x = 'AIza" + HEX * 2 + "012'",
        "x = 'hf_" + HEX * 2 + "'",
        "x = 'eyJ" + HEX + ".eyJ" + HEX + ".c2ln'",
        "x = 'pypi-" + HEX * 3 + "'",
        "x = 'npm_" + HEX * 3 + "'",
        "x = 'xoxb-" + HEX + "'",
        "x = 'sk-ant-" + HEX * 2 + "'",
        "x = 'sk_live_" + HEX * 2 + "'",
    ],
)
def test_a_secret_is_recognized_and_not_repeated(line: str) -> None:
    what = secret_in("src/x.py", f"a = 1\n{line}\n")
    assert what is not None
    assert "hunter2" not in what and HEX not in what


@pytest.mark.parametrize(
    "line",
    [
        "password = getpass()",
        "password = ''",
        "client(password=password, token=token)",
        "url = f'https://{user}:{password}@{host}'",
        "PASSWORD = f'{prefix}{number}'",
        "def login(password: str, secret: str | None = None) -> None:",
        "eot_token = '<|endoftext|>'",
        "key = 'n_head'",
        '"""Move http://user:password@host away."""',
        "uri = 'http://127.0.0.1:5000/@me'",
        "digest = '" + HEX * 4 + "'",
    ],
)
def test_ordinary_code_is_no_secret(line: str) -> None:
    assert secret_in("src/x.py", line) is None


def test_outside_python_a_value_needs_no_quotes() -> None:
    line = "cmd: MLFLOW_TRACKING_PASSWORD=hunter2 python -m stages.train"
    assert secret_in("dvc.yaml", line) is not None
    assert secret_in("src/x.py", line) is None
    assert secret_in("dvc.yaml", line.replace("hunter2", "${password}")) is None


@pytest.mark.parametrize("path", ["src/secrets.py", "src/secrets_local.py", "src/my_credentials.py"])
def test_a_file_may_say_so_by_its_name(path: str) -> None:
    assert secret_in(path, "A = 1") is not None


def test_nothing_in_the_code_of_this_repository_looks_like_a_secret() -> None:
    """Else the patch would never have its changes."""
    code = {name: (ROOT / name).read_text("utf-8") for name in stage_code() if (ROOT / name).is_file()}
    assert len(code) > 50
    assert {name for name, text in code.items() if secret_in(name, text)} == set()
