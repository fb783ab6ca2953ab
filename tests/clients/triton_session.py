"""Run by the clients' own Python: what tritonclient sees of a server, as JSON.

python triton_session.py 127.0.0.1:50051 MODEL
"""

import json
import queue
import sys
from functools import partial
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

PROMPT = [5, 6, 7, 8]
OPTIONS = {"max_tokens": 12, "temperature": 1.0, "seed": 42}


def inputs(**options: Any) -> list[Any]:
    tokens = triton.InferInput("input_ids", [1, len(PROMPT)], "INT64")
    tokens.set_data_from_numpy(np.array([PROMPT], dtype=np.int64))
    text = json.dumps(OPTIONS | options).encode()
    more = triton.InferInput("sampling_parameters", [1], "BYTES")
    more.set_data_from_numpy(np.array([text], dtype=np.object_))
    return [tokens, more]


def main(address: str, model: str) -> dict[str, Any]:
    client = triton.InferenceServerClient(address)
    metadata = client.get_model_metadata(model, as_json=True)
    seen: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata(as_json=True)["name"],
        "inputs": [tensor["name"] for tensor in metadata["inputs"]],
    }
    answer = client.infer(model, inputs(), client_timeout=120.0)
    seen["text"] = answer.as_numpy("text_output")[0].decode()
    seen["token_ids"] = answer.as_numpy("output_ids").tolist()
    seen["error"] = _error(client, model)
    seen["streamed"] = _stream(client, model)
    seen["cancelled"] = _cancel(client, model)
    client.close()
    return seen


def _error(client: triton.InferenceServerClient, model: str) -> str:
    try:
        client.infer(model, inputs(n=99))
    except InferenceServerException as error:
        return str(error.status())
    return "no error"


def _stream(client: triton.InferenceServerClient, model: str) -> list[Any]:
    pieces: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: pieces.put((result, error)))
    client.async_stream_infer(model, inputs(), request_id="mine")
    text, token_ids, is_last = "", [], False
    while not is_last:
        result, error = pieces.get(timeout=120.0)
        if error is not None:
            raise error
        response = result.get_response()
        assert response.id == "mine"
        text += result.as_numpy("text_output")[0].decode()
        token_ids += result.as_numpy("output_ids").tolist()
        is_last = response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    return [text, token_ids]


def _cancel(client: triton.InferenceServerClient, model: str) -> str:
    ended: queue.Queue[Any] = queue.Queue()
    done = partial(lambda result, error: ended.put(error))
    call = client.async_infer(
        model, inputs(max_tokens=1500, ignore_eos=True), callback=done, client_timeout=120.0
    )
    call.cancel()
    return str(ended.get(timeout=120.0).status())


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
