"""The parts of a URL or path: one parser for every URL, and what of it must not be shown or recorded."""

import os
import re
from urllib.parse import quote, unquote

QUERY_VARIABLE = "REPROGPT_CORPUS_URL_QUERY"

_IS_WEB = re.compile(r"(?i)https?://")
# The user and password of a URL. The second form is a password with an unescaped slash: such a URL can't be used, but
# the message that says so must not show the password either.
_USER_INFO = re.compile(r"(?<=://)(?:[^/?#\s]*@|[^/?#@\s]*:(?!\d+[/?#])\S*?@)")
# The same before a host, where it holds characters that have to be quoted. Digits before a slash are a port.
_UNQUOTED_USER_INFO = re.compile(r"(?<=://)[^\[:/?#@\s]*:(?!\d+/)[^@\s]*(?=@)")
_QUOTES = str.maketrans({character: quote(character, safe="") for character in "[]#?/"})
_PARAMETER = re.compile(r"(?<=[?#&;])([^?#&;=\s]+)=([^?#&;\s]+)")
# Of a parameter's name, in lower case: a word of it, or all of it without what separates words.
_SECRET_WORDS = {
    *("auth", "authorization", "credential", "credentials", "hmac", "jwt", "key", "passphrase", "passwd", "password"),
    *("pass", "pwd", "sas", "secret", "sig", "sign", "signature", "token"),
}
_SECRET_ENDS = (
    *("apikey", "accesskey", "accesskeyid", "secretkey", "sharedkey", "resourcekey", "rlkey", "subscriptionkey"),
    *("authkey", "privatekey", "token", "tempauth", "password", "secret", "signature", "sessionid"),
)


def is_web(url: str) -> bool:
    """Whether the URL is one of http or https."""
    return bool(_IS_WEB.match(url))


def path_of_url(url: str) -> str:
    """A URL before its query and fragment. Only the web has these: in a file's path, # and ? are letters."""
    return re.split("[?#]", url, maxsplit=1)[0] if is_web(url) else url


def credentials_in(url: str) -> list[str]:
    """The names of the parameters in a web URL's query and fragment whose values are credentials."""
    rest = url[len(path_of_url(url)) :]
    return [name for name, _ in _PARAMETER.findall(rest) if _is_secret(name)]


def with_secret_query(url: str) -> str:
    """The URL to download from: a web URL with the environment's query, which is neither shown nor recorded."""
    query = _secret_query()
    if not query or not is_web(url):
        return url
    address, _, fragment = url.partition("#")
    return f"{address}{'&' if '?' in address else '?'}{query}" + (f"#{fragment}" if fragment else "")


def has_secret_query(url: str) -> bool:
    """Whether with_secret_query made the URL."""
    query = _secret_query()
    return bool(query) and query in url


def _secret_query() -> str:
    return os.environ.get(QUERY_VARIABLE, "").lstrip("?&")


def quote_user_info(url: str) -> str:
    """The URL with a password as a URL has to hold it: `[`, `]`, `#`, `?` and `/` quoted. `@` and `%` stay."""
    return _UNQUOTED_USER_INFO.sub(lambda match: match[0].translate(_QUOTES), url)


def redact(text: str) -> str:
    """`text`, a URL or a message with URLs in it, without `user:password@` and without values that are credentials."""
    query = _secret_query()
    if query:
        text = text.replace(query, "…")
    return _PARAMETER.sub(lambda match: f"{match[1]}=…" if _is_secret(match[1]) else match[0], _USER_INFO.sub("", text))


def _is_secret(name: str) -> bool:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unquote(name))
    words = re.findall(r"[a-z0-9]+", spaced.lower())
    return bool(_SECRET_WORDS.intersection(words)) or "".join(words).endswith(_SECRET_ENDS)
