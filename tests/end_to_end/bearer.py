"""For a server under test: MLflow's basic authentication, and a token, as a company's own login would take one."""

import os

from flask import Response, request
from mlflow.server.auth import authenticate_request_basic_auth
from werkzeug.datastructures import Authorization


def authenticate() -> Authorization | Response:
    """The administrator for whoever sends the token; everybody else needs a user name and password."""
    given = request.authorization
    if given is not None and given.type == "bearer" and given.token == os.environ["TEST_TOKEN"]:
        return Authorization("basic", {"username": "admin", "password": ""})
    return authenticate_request_basic_auth()
