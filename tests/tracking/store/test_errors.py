"""What a server, or what is between here and it, answers: each named by what it is, with the remedy."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import verify_rest_response

from reprogpt.errors import TrackingError
from reprogpt.tracking.store.errors import SettingsError, explain, store_errors
from tests.tracking.trainings import answer

ENDPOINT = "/api/2.0/mlflow/experiments/get-by-name"
PAGE = "<!DOCTYPE html>\n<html><title>Sign in</title></html>"
HOST_CHECK = "Invalid Host header - possible DNS rebinding attack detected"
UNREACHABLE = (
    "NewConnectionError('HTTPConnection: Failed to establish a new connection: [Errno 111] Connection refused')"
)
FORBIDDEN = "OSError('Tunnel connection failed: 403 Forbidden')"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@tracking.example:5000/mlflow")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for variable in (name, name.lower()):
            monkeypatch.delenv(variable, raising=False)


def message(status: int, body: str) -> str:
    """Of an answer that is final."""
    with pytest.raises(SettingsError) as caught, store_errors():
        verify_rest_response(answer(status, body), ENDPOINT)
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "", "authentication failed (401). Set\nMLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "permission denied (403); the server's administrator can grant EDIT"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "permission denied (403); the server's"),
        (403, HOST_CHECK, "Where it is started,\nadd tracking.example:5000 to MLFLOW_SERVER_ALLOWED_HOSTS or"),
        (403, "", "as AirPlay does, which listens on port 5000 of macOS: start\nthe server on another port"),
        (403, PAGE, "a proxy or firewall before the MLflow server refuses (403) with a web page"),
        (200, PAGE, "it answers with a web page, such as one to log in, not as an MLflow server does"),
        (
            405,
            PAGE,
            "as after a redirect to another address: set MLFLOW_TRACKING_URI=https://tracking.example:5000/mlflow",
        ),
        (407, "", "wants a password (407): set HTTP_PROXY=http://USER:PASSWORD@HOST:PORT"),
    ],
)
def test_an_answer_that_refuses_is_named_by_what_it_is(status: int, body: str, words: str) -> None:
    assert words in message(status, body)


def test_an_empty_403_of_another_port_is_no_airplay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    assert "permission denied (403)" in message(403, "")


def test_a_page_through_a_proxy_may_be_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy.example:3128")
    words = message(403, PAGE)
    assert "It may be the proxy\nhttp://proxy.example:3128, which the environment sets" in words
    assert words.endswith("NO_PROXY=tracking.example avoids it for this server")
    monkeypatch.setenv("NO_PROXY", "tracking.example")
    assert "a proxy or firewall before" in message(403, PAGE)


@pytest.mark.parametrize(("cause", "words"), [(UNREACHABLE, "Connection refused"), (FORBIDDEN, "403 Forbidden")])
def test_a_proxy_of_the_environment_is_not_taken_for_the_server(
    monkeypatch: pytest.MonkeyPatch, cause: str, words: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy.example:3128")
    text = f"Max retries exceeded with url: / (Caused by ProxyError('Unable to connect to proxy', {cause}))"
    error = explain(MlflowException(f"API request to http://tracking.example:5000 failed with exception {text}"))
    fails = f"the proxy http://proxy.example:3128, which the environment sets, fails: {words}.\nCheck HTTP_PROXY"
    assert fails in str(error) and str(error).endswith("NO_PROXY=tracking.example avoids it for this server")
    assert not isinstance(error, SettingsError)  # the proxy may come back


@pytest.mark.parametrize(("status", "words"), [(401, "authentication failed"), (403, "permission denied")])
def test_a_refusal_of_the_artifacts_is_named_too(status: int, words: str) -> None:
    with pytest.raises(SettingsError, match=rf"{words} \({status}\)"), store_errors():
        augmented_raise_for_status(answer(status, "Permission denied"))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_in_trouble_is_asked_again(status: int) -> None:
    with pytest.raises(TrackingError, match=str(status)) as caught, store_errors():
        verify_rest_response(answer(status, PAGE), ENDPOINT)
    assert not isinstance(caught.value, SettingsError)
