// What k6 users write: a crowd of users, each with a few requests, whole and streamed.
import http from "k6/http";
import { check } from "k6";

export const options = {
  scenarios: { crowd: { executor: "per-vu-iterations", vus: 16, iterations: 4, maxDuration: "180s" } },
  thresholds: { checks: ["rate==1.0"], http_req_failed: ["rate==0.0"] },
};

export default function () {
  const body = { prompt: "once upon a time", max_tokens: 8, seed: __VU, stream: __ITER % 2 === 1 };
  const headers = { "Content-Type": "application/json" };
  const reply = http.post(`${__ENV.BASE_URL}/v1/completions`, JSON.stringify(body), { headers });
  check(reply, {
    "status is 200": (r) => r.status === 200,
    "it has an id": (r) => r.headers["X-Request-Id"] !== undefined,
    "it is whole": (r) =>
      body.stream ? r.body.endsWith("data: [DONE]\n\n") : r.json("usage.completion_tokens") > 0,
  });
  check(http.get(`${__ENV.BASE_URL}/health`), { "it is healthy": (r) => r.status === 200 });
}
