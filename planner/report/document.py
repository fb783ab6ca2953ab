"""A search's answer as JSON; the keys are kept from version to version."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from planner.ask.ask import Setup
from planner.report.choice import chosen
from planner.report.explain import explained
from planner.report.measures import Measures
from planner.search.intervals import Interval
from planner.search.question import Answer, Question
from planner.search.results import Candidate, Ranked, Verdict
from planner.search.sensitivity import Sensitivity
from planner.search.steady import Judgement

SCHEMA = 1


def plan_document(
    setup: Setup, question: Question, answer: Answer, what_if: Sequence[Sensitivity]
) -> dict[str, Any]:
    """All of it. Infinite figures are null."""
    winner = chosen(answer, question)
    return {
        "schema": SCHEMA,
        "model": setup.model.shape.name,
        "goal": question.goal.value,
        "rate_per_s": question.rate_per_s,
        "budget": {
            "gpus": question.most_gpus,
            "usd_per_hour": question.max_usd_per_hour,
            "watts": question.max_w,
        },
        "is_feasible": answer.is_feasible,
        "colocated_wins": answer.colocated_wins,
        "chosen": None if winner is None else ranked_document(winner),
        "ranked": [ranked_document(each) for each in answer.ranked],
        "colocated": None if answer.colocated is None else ranked_document(answer.colocated),
        "missed": [asdict(each) for each in answer.missed],
        "best_rate_per_s": answer.best_rate_per_s,
        "what_if": [
            {
                "name": each.name,
                "judgement": judgement_document(each.judgement),
                "attainment_change": each.attainment_change,
                "goodput_change": each.goodput_change,
            }
            for each in what_if
        ],
        "explanation": {name: list(texts) for name, texts in explained(setup, question, answer)},
        "num_runs": answer.num_runs,
        "num_requests": answer.num_requests,
    }


def ranked_document(ranked: Ranked) -> dict[str, Any]:
    """One cluster."""
    after = ranked.after_loss
    return {
        **candidate_document(ranked.candidate),
        "attains": ranked.attains,
        "goodput_rps": ranked.found.low_per_s,
        "goodput_rps_per_gpu": asdict(ranked.goodput_rps_per_gpu),
        "usd_per_hour": ranked.usd_per_hour,
        "verdict": verdict_document(ranked.verdict),
        "after_loss": None if after is None else judgement_document(after),
        "rates": [judgement_document(each) for each in ranked.found.judgements],
        "notes": list(ranked.notes),
    }


def candidate_document(candidate: Candidate) -> dict[str, Any]:
    """Its pools."""
    return {
        "cluster": str(candidate),
        "num_gpus": candidate.num_gpus,
        "num_instances": candidate.num_instances,
        "num_segments": candidate.num_segments,
        "is_colocated": candidate.is_colocated,
        "pools": [
            {
                "role": pool.role.value,
                "tp": pool.layout.tp,
                "pp": pool.layout.pp,
                "num": pool.num,
                "hardware": pool.hardware,
                "scheduling": pool.scheduling.name.lower(),
            }
            for pool in candidate.pools
        ],
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """At one rate."""
    return {
        **judgement_document(verdict.judgement),
        "ttft_share": _interval(verdict.ttft_share),
        "tpot_share": _interval(verdict.tpot_share),
        "ttft_s": asdict(verdict.ttft_s),
        "tpot_s": asdict(verdict.tpot_s),
        "slo_scale": verdict.slo_scale,
        "bottleneck": verdict.bottleneck.value,
        "link_load": verdict.link_load,
        "num_preemptions_per_request": verdict.num_preemptions_per_request,
        "usd_per_million_output_tokens": verdict.usd_per_million_output_tokens,
        "average_w": verdict.average_w,
        "provisioned_w": verdict.provisioned_w,
    }


def judgement_document(judgement: Judgement) -> dict[str, Any]:
    """Attainment of every class."""
    return {
        "rate_per_s": judgement.rate_per_s,
        "attains": judgement.attains,
        "is_sure": judgement.is_sure,
        "is_steady": judgement.is_steady,
        "attainment": {
            each.criterion.name: {**asdict(each.share), "target": each.criterion.target}
            for each in judgement.asked
        },
        "num_runs": judgement.num_runs,
        "num_requests_per_run": judgement.num_requests,
    }


def measures_document(found: Measures) -> dict[str, Any]:
    """Of a given cluster."""
    judged = found.judgement
    return {
        **judgement_document(judged),
        "ttft_share": _interval(judged.watched("ttft")),
        "tpot_share": _interval(judged.watched("tpot")),
        "ttft_s": asdict(found.ttft_s),
        "tpot_s": asdict(found.tpot_s),
        "e2e_s": asdict(found.e2e_s),
        "first_gap_s": asdict(found.first_gap_s),
        "num_requests": found.num_requests,
        "num_refused": found.num_refused,
        "output_tokens_per_s": found.output_tokens_per_s,
        "link_load": found.link_load,
        "average_w": found.average_w,
        "provisioned_w": found.provisioned_w,
        "usd_per_hour": found.usd_per_hour,
        "usd_per_million_output_tokens": found.usd_per_million_output_tokens,
        "busy": {role.value: asdict(busy) for role, busy in found.busy.items()},
        "counters": asdict(found.counters),
    }


def as_json(document: dict[str, Any]) -> str:
    """Two spaces deep; JSON has no infinity, so that it becomes null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _interval(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON has
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
