"""What clients send to MLflow's own scoring server, over HTTP on loopback, is answered with a text or a message."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from mlflow.pyfunc import PyFuncModel, scoring_server

from reprogpt.serving import text_generator
from tests.serving.conftest import ROOT, TRAINED_WITH

# Each form of MLflow's payloads with these prompts, by the names of test cases.
FORMS: dict[str, Callable[[list[Any]], dict[str, Any]]] = {
    "inputs": lambda prompts: {"inputs": prompts},
    "inputs by column": lambda prompts: {"inputs": {"prompt": prompts}},
    "inputs by row": lambda prompts: {"inputs": [{"prompt": prompt} for prompt in prompts]},
    "instances": lambda prompts: {"instances": prompts},
    "instances by row": lambda prompts: {"instances": [{"prompt": prompt} for prompt in prompts]},
    "dataframe_split": lambda prompts: {
        "dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in prompts]}
    },
    "dataframe_split with an index": lambda prompts: {
        "dataframe_split": {
            "columns": ["prompt"],
            "data": [[prompt] for prompt in prompts],
            "index": [7 + number for number, _ in enumerate(prompts)],
        }
    },
    "dataframe_records": lambda prompts: {"dataframe_records": [{"prompt": prompt} for prompt in prompts]},
}
PARAMETERS = ["max_new_tokens", "temperature", "top_k", "seed", "stop_at_end_of_text", "from_start"]
SHORT = {"max_new_tokens": 2, "temperature": 0}
Ask = Callable[..., requests.Response]


@pytest.fixture(scope="module")
def ask(model: PyFuncModel) -> Iterator[Ask]:
    """Posts a request to a server of the model and returns the answer, after a look at what it shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # as the server sets it, to be removed afterwards
        app = scoring_server.init(model)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]

        def post(request: dict[str, Any], **options: Any) -> requests.Response:
            address = f"http://127.0.0.1:{port}/invocations"
            body = json.dumps(request)  # also of NaN, which requests refuses
            headers = {"Content-Type": "application/json"}
            response = requests.post(address, body, headers=headers, timeout=options.get("timeout", 120))
            for word in (
                "Traceback",
                "stack_trace",
                'File \\"',
                "/a/local/path",
                str(ROOT),
                str(Path(text_generator.__file__).parent),
            ):
                assert word not in response.text
            return response

        yield post
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def refusal(response: requests.Response) -> str:
    """What a refused request is told, without what MLflow puts before it."""
    assert response.status_code == 400, response.text
    return str(response.json()["message"]).rpartition("\nError: ")[2]


def texts(response: requests.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [row["text"] for row in response.json()["predictions"]]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_a_text_for_each_prompt(ask: Ask, form: str) -> None:
    several = texts(ask({**FORMS[form](["A", "Every effort", "A"]), "params": SHORT}))
    one = texts(ask({**FORMS[form](["Every effort"]), "params": SHORT}))
    assert several[1:2] == one and several[0] == several[2]
    assert several[0].startswith("A") and one[0].startswith("Every effort") and len(one[0]) > len("Every effort")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_text_is_refused_in_every_form(ask: Ask, form: str) -> None:
    """null above all, which MLflow makes the text None where the model asks for strings."""
    wrong: dict[Any, str] = {None: "null", 7: "7, not text", 1.5: "1.5, not text", True: "True, not text"}
    for value, words in wrong.items():
        assert refusal(ask(FORMS[form]([value]))).startswith(f"prompt is {words}; give a ")
    assert refusal(ask(FORMS[form]([""]))) == "prompt is empty; give a text of at least one character"
    assert refusal(ask(FORMS[form](["A", None]))).startswith("prompt 2 of 2 is null; give a text")
    assert refusal(ask(FORMS[form]([None, "A"]))).startswith("prompt 1 of 2 is null; give a text")
    assert refusal(ask(FORMS[form](["A", ""]))).startswith("prompt 2 of 2 is empty; give a text")
    if form not in ("inputs", "instances"):  # where an object is a row
        assert refusal(ask(FORMS[form]([{"a": "b"}]))).startswith("prompt is {'a': 'b'}, not text")
    if form != "instances by row":  # where numpy makes them text, or a message of its own, before the model sees them
        assert refusal(ask(FORMS[form](["A", 7]))).startswith("prompt 2 of 2 is 7, not text")
        assert refusal(ask(FORMS[form](["A", True]))).startswith("prompt 2 of 2 is True, not text")
        assert refusal(ask(FORMS[form](["A", ["B"]]))).startswith("prompt 2 of 2 is ['B'], not text")


def test_a_single_prompt_by_its_name_is_answered_or_refused(ask: Ask) -> None:
    """MLflow's forms without a list."""
    assert texts(ask({"inputs": {"prompt": "A"}, "params": SHORT}))[0].startswith("A")
    assert ask({"prompt": "A", **SHORT}).json()[0]["text"].startswith("A")
    assert refusal(ask({"inputs": {"prompt": None}})).startswith("prompt is null")
    assert refusal(ask({"prompt": None})).startswith("prompt is null")
    assert "missing inputs ['prompt']" in refusal(ask({"inputs": "A"}))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_that_is_null_or_of_another_kind_is_named(ask: Ask, name: str) -> None:
    assert refusal(ask({"inputs": ["A"], "params": {name: None}})) == (
        f"{name} is null; leave it out for the model's default"
    )
    assert refusal(ask({"prompt": "A", name: None})) == f"{name} is null; leave it out for the model's default"
    for wrong in ("x", [1], {"a": 1}, True if name not in ("stop_at_end_of_text", "from_start") else 1):
        message = refusal(ask({"inputs": ["A"], "params": {name: wrong}}))
        assert name in message and ("an not safely convert" in message or "must be a scalar" in message)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, 4097, 2**63, 2**70]),
        ("temperature", [-1, 1001, 1e-9, float("nan"), float("inf")]),
        ("top_k", [0, -1, 2**31]),
        ("seed", [-1, 2**63, 2**70]),
    ],
)
def test_a_value_out_of_bounds_is_answered_with_its_bounds(ask: Ask, name: str, values: list[float]) -> None:
    for value in values:
        assert f"{name} is {value if name != 'temperature' else float(value)}, but must be" in refusal(
            ask({"inputs": ["A"], "params": {name: value}})
        )


def test_params_that_are_none_or_no_mapping_are_the_defaults_or_refused(ask: Ask) -> None:
    assert texts(ask({"inputs": ["A"], "params": None})) == texts(ask({"inputs": ["A"]}))
    values: list[Any] = [[], "x", 1]
    for wrong in values:
        assert "Parameters must be a dictionary" in refusal(ask({"inputs": ["A"], "params": wrong}))


def test_too_many_prompts_are_refused(ask: Ask) -> None:
    message = refusal(ask({"inputs": ["A"] * 65, "params": SHORT}))
    assert message.startswith("the request has 65 prompts, but max_prompts=64 of the model's configuration")
    assert len(set(texts(ask({"inputs": ["A"] * 64, "params": SHORT})))) == 1  # more than one batch


@pytest.mark.parametrize("letter", [" ", "^", "a"])
def test_a_prompt_of_a_million_letters_is_refused_within_seconds(ask: Ask, letter: str) -> None:
    begin = time.monotonic()
    message = refusal(ask({"inputs": [letter * 1_000_000]}, timeout=60))
    assert message.startswith("prompt has 1000000 characters, but at most 100000 are allowed; send its end")
    assert time.monotonic() - begin < 30
    assert len(texts(ask({"inputs": [letter * 100_000], "params": SHORT}, timeout=60))) == 1


def test_an_unexpected_fault_is_an_answer_without_a_traceback(
    ask: Ask, model: PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[str]:
        raise RuntimeError("/a/local/path")

    monkeypatch.setattr(model.unwrap_python_model(), "_continue", fail)
    response = ask({"inputs": ["A"]})
    assert response.status_code == 500
    assert response.json()["message"].endswith("\nError: the request failed; the log of the server says why")


def test_requests_whose_clients_have_gone_end_at_their_time_limit(
    ask: Ask, model: PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's server does not tell the model of them; all of their tokens would take minutes."""
    served: Any = model.unwrap_python_model()
    monkeypatch.setitem(served._limits, "max_seconds", 1)
    prompts = [f"Number {number}" for number in range(16)]
    for _ in range(2):
        with pytest.raises(requests.Timeout):
            ask({"inputs": prompts, "params": {"max_new_tokens": 4096}}, timeout=0.5)
    deadline = time.monotonic() + 30
    while served._numerics._num_users:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setitem(served._limits, "max_seconds", 60)
    assert texts(ask({"inputs": ["A"], "params": SHORT}))[0].startswith("A")


def test_requests_at_the_same_time_have_the_answers_that_each_has_alone(ask: Ask) -> None:
    """Of lengths in which some begin and end while others are at work."""
    requests_ = [
        {"inputs": [f"Number {number}"], "params": {"seed": number, "max_new_tokens": 4 + 6 * (number % 4)}}
        for number in range(8)
    ]
    alone = [texts(ask(request)) for request in requests_]
    with ThreadPoolExecutor(8) as pool:
        assert [texts(response) for response in pool.map(ask, requests_)] == alone


def test_the_text_of_a_prompt_does_not_depend_on_its_neighbors(ask: Ask) -> None:
    prompts = ["A", "Every effort moves you", "He", "It was a long way from there to the sea, she said, and wept"]
    params = {"max_new_tokens": TRAINED_WITH["max_new_tokens"], "seed": 5}
    alone = [texts(ask({"inputs": [prompt], "params": params}))[0] for prompt in prompts]
    assert texts(ask({"inputs": prompts, "params": params})) == alone
    assert texts(ask({"inputs": prompts[::-1], "params": params})) == alone[::-1]
