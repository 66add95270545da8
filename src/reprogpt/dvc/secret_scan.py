"""Recognizes secrets in code by the forms that most of them have. Others it does not find."""

import re
from pathlib import PurePosixPath

# Repetitions are bounded: a long line must not take minutes.
_FILE = re.compile("(?i)(?:^|_)(?:secrets|credentials|passwords)(?:_|$)")
_NAME = (
    r"(?i:passw(?:or)?d|passphrase|secret|credential|(?:access|api|auth|private)_?key"
    r"|(?:access|api|auth|tracking)_?token)\w{0,40}"
)
# Before the quote: the end of a key, as in {"password": …}, an annotation, and a line of its own.
_QUOTED = re.compile(_NAME + r"""["']?\]?\s*(?::[^=\n"']{0,80}=|[=:])[\s(+]*[a-zA-Z]?(["'])(?!\1|[{<$])""")
_UNQUOTED = re.compile(_NAME + r"\s*[=:]\s*[^\s\"'{<$]")
_FORMS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password in a URL": r"\w://[^\s/:@\"']*:(?!(?i:password)@|[{<$*.…])[^\s/@\"']+@",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "an Azure key": r"AccountKey=[\w+/]{20}",
    "a GitHub token": r"\b(?:gh[oprsu]_|github_pat_)\w{22}",
    "a GitLab token": r"\bglpat-[\w-]{20}",
    "a Google key": r"\bAIza[\w-]{35}",
    "a Hugging Face token": r"\bhf_[a-zA-Z0-9]{30}",
    "a JSON Web Token": r"\beyJ[\w-]{10,500}\.eyJ",
    "an npm or PyPI token": r"\b(?:npm_|pypi-)[\w-]{36}",
    "a Slack token": r"\bxox[a-z]-[\w-]{10}",
    "a key of OpenAI, Anthropic or Stripe": r"\b(?:sk-|[rs]k_live_)[\w-]{20}",
}


def secret_in(path: str, text: str) -> str | None:
    """What in this text of a file looks like a secret, in words that don't repeat it; None if nothing does.

    path: of the file. Python needs quotes around a string; other files, such as dvc.yaml, don't.
    """
    if _FILE.search(PurePosixPath(path).stem):
        return "the file's name"
    if _QUOTED.search(text) or (not path.endswith(".py") and _UNQUOTED.search(text)):
        return "a value with the name of a secret"
    return next((kind for kind, form in _FORMS.items() if re.search(form, text)), None)
