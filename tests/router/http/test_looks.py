"""What machines and curious people ask."""

from tests.router.http.conftest import OpenWeb


async def test_models(web: OpenWeb) -> None:
    site = await web()
    document = (await site.get("/v1/models")).json
    [model] = document["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake", "model", 4096)
    assert (await site.get("/v1/models/fake")).json == model
    assert (await site.get("/v1/models/other")).status == 404


async def test_tokenize_and_back(web: OpenWeb) -> None:
    site = await web()
    body = {"prompt": "w5 w6", "return_token_strs": True}
    document = (await site.post("/tokenize", body)).json
    assert document == {
        "count": 2,
        "max_model_len": 4096,
        "tokens": [5, 6],
        "token_strs": ["w5", "w6"],
    }
    chat = {"messages": [{"role": "user", "content": "w7"}]}
    assert (await site.post("/tokenize", chat)).json["tokens"] == [7]
    assert (await site.post("/detokenize", {"tokens": [5, 6]})).json == {"prompt": "w5 w6"}


async def test_health_and_readiness(web: OpenWeb) -> None:
    site = await web("pd")
    assert (await site.get("/health")).json == {"status": "ok"}
    assert (await site.get("/ready")).status == 200
    for path in ("/health", "/ready", "/metrics"):
        reply = await site.ask("HEAD", path)
        assert (reply.status, reply.body) == (200, b"")


async def test_nobody_there_is_not_ready(web: OpenWeb) -> None:
    site = await web("")
    assert (await site.get("/health")).status == 200
    reply = await site.get("/ready")
    assert (reply.status, reply.json) == (503, {"status": "no instance is connected"})
    reply = await site.post("/v1/completions", {"prompt": "w1"})
    assert (reply.status, reply.error["code"]) == (503, "no_instance")
    assert reply.headers["retry-after"] == "1"


async def test_the_api_describes_itself(web: OpenWeb) -> None:
    site = await web()
    document = (await site.get("/openapi.json")).json
    assert set(document["paths"]) == {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
    }
