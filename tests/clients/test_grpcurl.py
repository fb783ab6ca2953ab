"""grpcurl: what somebody sees who has nothing but reflection."""

import json

import pytest

from tests.clients.conftest import Run, grpc_address
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

REQUEST = {
    "tokenIds": {"ids": [5, 6, 7, 8]},
    "sampling": {"temperature": 0.0},
    "stop": {"maxTokens": 5},
}


def test_services_are_listed_and_described(site: RunningCluster, client: Run) -> None:
    listed = client("grpcurl", "-plaintext", grpc_address(site), "list").split()
    assert {
        "baton.v1.Cluster",
        "baton.v1.Generation",
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
    } <= set(listed)
    about = client(
        "grpcurl", "-plaintext", grpc_address(site), "describe", "baton.v1.GenerateRequest"
    )
    assert "message GenerateRequest" in about


def test_an_answer(site: RunningCluster, client: Run) -> None:
    output = client(
        "grpcurl",
        "-plaintext",
        "-v",
        "-d",
        json.dumps(REQUEST),
        grpc_address(site),
        "baton.v1.Generation/Generate",
    )
    assert '"accepted"' in output
    assert '"num_output_tokens": 5' in output
    assert "x-request-id: " in output


@pytest.mark.parametrize(
    ("service", "data", "said"),
    [
        ("grpc.health.v1.Health/Check", {}, "SERVING"),
        ("inference.GRPCInferenceService/ServerReady", {}, '"ready": true'),
        ("baton.v1.Cluster/Status", {}, '"http_address"'),
    ],
)
def test_looks(site: RunningCluster, client: Run, service: str, data: object, said: str) -> None:
    output = client("grpcurl", "-plaintext", "-d", json.dumps(data), grpc_address(site), service)
    assert said in output


def test_a_bad_request_is_told_by_field(site: RunningCluster, client: Run) -> None:
    bad = REQUEST | {"numChoices": 99}
    output = client(
        "grpcurl",
        "-plaintext",
        "-d",
        json.dumps(bad),
        grpc_address(site),
        "baton.v1.Generation/Generate",
        status=None,
    )
    assert "Code: InvalidArgument" in output
    assert "num_choices" in output
    assert "google.rpc.RequestInfo" in output
