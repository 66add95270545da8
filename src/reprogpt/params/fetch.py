"""What the `fetch` stage reads from params.yaml."""

import re
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from reprogpt.params.loader import Params
from reprogpt.urls import QUERY_VARIABLE, credentials_in


class FetchParams(Params):
    """Where the corpus comes from, and how large it may be."""

    corpus_url: str = Field(description="an https, http or file URL")
    corpus_sha256: str = Field(
        pattern=r"^([0-9a-f]{64})?$", description='64 hexadecimal digits in lower case, or "" to accept any text'
    )
    offline_corpus: str = Field(description='the path of a text in the repository, or "" for no fallback')
    max_corpus_bytes: int = Field(ge=1, le=2**63 - 1)

    @field_validator("corpus_url")
    @classmethod
    def _is_a_url_without_credentials(cls, url: str) -> str:
        # Checked first, anywhere before the path ends: even a malformed URL must not be printed with a password.
        if re.search(r"://[^?#\s]*@", url):
            raise PydanticCustomError(
                "secret",
                "holds a user name or password (something before an @), which dvc.lock would record; "
                "put it into ~/.netrc, and write an @ that belongs to the path as %40",
            )
        if names := credentials_in(url.partition("#")[0]):
            raise PydanticCustomError(
                "secret",
                "holds a credential in its query ({names}), which dvc.lock would record; leave out what follows the ? "
                f"and set the environment variable {QUERY_VARIABLE} to it: fetch sends it and records it nowhere",
                {"names": ", ".join(dict.fromkeys(names))},
            )
        if names := credentials_in(url):
            raise PydanticCustomError(
                "secret",
                "holds a credential in its fragment ({names}), which dvc.lock would record; leave out what follows the "
                "#, which is never sent",
                {"names": ", ".join(dict.fromkeys(names))},
            )
        if "://" not in url and (path := _existing_file(url)):
            raise ValueError(f"is a path; write it as a URL: {path.as_uri()}")
        if not re.match(r"(?i:https?|file)://.", url):
            raise ValueError("is not allowed; allowed: an https, http or file URL")
        return url


def _existing_file(name: str) -> Path | None:
    """The file of this name, absolute, where `~` stands for a home folder; None if there is none."""
    try:
        path = Path(name).expanduser().absolute()
    except RuntimeError:  # no such home folder
        return None
    return path if path.is_file() else None
