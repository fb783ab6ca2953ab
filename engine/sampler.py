"""From logits to tokens: penalties, grammars, filters, and an inverse CDF over keyed numbers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from core.request import TokenLogprobs
from engine.batch import SampleSpec
from engine.uniform import uniform

TOP_P_CANDIDATES = 1024
"""Tokens looked at before the whole vocabulary is sorted: a top-k costs a tenth of a sort."""

Masks = Sequence[npt.NDArray[np.uint8] | None]
"""Per row, one bit per token, lowest bit first, set for those that may come; None allows all."""


def sample(
    logits: torch.Tensor, specs: Sequence[SampleSpec], masks: Masks = ()
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """One token id per row of [row, vocabulary], and its log-probabilities where asked for.

    A row's outcome depends on its own logits, spec and mask only.
    """
    logits = logits.float()
    adjusted = _adjusted(logits, specs, masks)
    token_ids = adjusted.argmax(dim=-1)
    rows = [i for i, spec in enumerate(specs) if spec.sampling.temperature > 0]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        token_ids[index] = _draw(adjusted[index], [specs[i] for i in rows])
    return token_ids.tolist(), _logprobs(logits, token_ids, specs)


def _logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, specs: Sequence[SampleSpec]
) -> list[TokenLogprobs | None]:
    """Of the raw logits, for the rows that ask."""
    told: list[TokenLogprobs | None] = [None] * len(specs)
    wanted = {i: k for i, spec in enumerate(specs) if (k := spec.sampling.num_logprobs) is not None}
    if not wanted:
        return told
    index = torch.tensor(list(wanted), device=logits.device)
    logits = logits[index]
    norm = logits.logsumexp(dim=-1, keepdim=True)
    chosen = (logits.gather(1, token_ids[index, None]) - norm)[:, 0].tolist()
    scores, ids = _top(logits, min(max(wanted.values()), logits.shape[1]))
    lines = zip(chosen, ids.tolist(), (scores - norm).tolist(), strict=True)
    for (i, k), (logprob, top_ids, top) in zip(wanted.items(), lines, strict=True):
        told[i] = TokenLogprobs(logprob, tuple(zip(top_ids[:k], top[:k], strict=True)))
    return told


def _top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of each row and their ids; of equals the lower id first.

    The order of equals must not depend on k, which is the most that any row of the batch asks.
    """
    values, ids = logits.topk(k, dim=-1)
    if k == 0:
        return values, ids
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    # Equals of the k-th that were left out: which ones is topk's whim.
    cut = ((logits >= values[:, -1:]).sum(dim=-1) > k).nonzero()[:, 0]
    if len(cut):
        ids[cut] = logits[cut].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return values, ids


def _adjusted(logits: torch.Tensor, specs: Sequence[SampleSpec], masks: Masks) -> torch.Tensor:
    """Penalties, then bias, then bans, then grammars; the given tensor unchanged."""
    changed = [i for i, spec in enumerate(specs) if _adjusts(spec)]
    masked = {i: mask for i, mask in enumerate(masks) if mask is not None}
    if not changed and not masked:
        return logits
    logits = logits.clone()
    for i in changed:
        _penalise(logits[i], specs[i])
        _bias_and_ban(logits[i], specs[i])
    if masked:
        index = torch.tensor(list(masked), device=logits.device)
        allowed = _unpacked(list(masked.values()), logits)
        logits[index] = logits[index].masked_fill(~allowed, float("-inf"))
    return logits


def _unpacked(masks: Sequence[npt.NDArray[np.uint8]], like: torch.Tensor) -> torch.Tensor:
    """[row, vocabulary] of bool. Packed to the device: an eighth of the bytes."""
    packed = torch.from_numpy(np.stack(masks)).to(like.device)
    bits = 2 ** torch.arange(8, dtype=torch.uint8, device=like.device)
    return (packed[:, :, None] & bits).flatten(1)[:, : like.shape[1]] != 0


def _adjusts(spec: SampleSpec) -> bool:
    return _has_penalty(spec) or bool(spec.sampling.logit_bias) or bool(_banned(spec))


def _has_penalty(spec: SampleSpec) -> bool:
    params = spec.sampling
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def _banned(spec: SampleSpec) -> tuple[int, ...]:
    return spec.stop.stop_token_ids if spec.position < spec.stop.min_tokens else ()


def _penalise(row: torch.Tensor, spec: SampleSpec) -> None:
    if not _has_penalty(spec):
        return
    params = spec.sampling
    output, counts = np.unique(
        np.asarray(spec.output_token_ids, dtype=np.int64), return_counts=True
    )
    if params.repetition_penalty != 1:
        prompt = np.asarray(spec.prompt_token_ids, dtype=np.int64)
        seen = torch.from_numpy(np.union1d(prompt, output)).to(row.device)
        scores = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    ids = torch.from_numpy(output).to(row.device)
    times = torch.from_numpy(counts).to(row)
    row[ids] -= params.presence_penalty + params.frequency_penalty * times


def _bias_and_ban(row: torch.Tensor, spec: SampleSpec) -> None:
    bias = spec.sampling.logit_bias
    if bias:
        ids = torch.tensor(list(bias.keys()), device=row.device)
        row[ids] += torch.tensor(list(bias.values()), device=row.device, dtype=row.dtype)
    if banned := _banned(spec):
        row[torch.tensor(banned, device=row.device)] = float("-inf")


def _draw(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> torch.Tensor:
    """Sample each row by inverse CDF in token-id order, in float64.

    Batching changes logits in their last bits; it then moves the CDF by as little, and the token
    only if the random number falls in that sliver.
    """
    scores = logits.double()
    # The maximum first: a tiny temperature then gives 0 and -inf, never inf - inf.
    scores -= scores.amax(dim=-1, keepdim=True)
    scores /= _column([spec.sampling.temperature for spec in specs], scores)
    scores = _keep_top_k(scores, [spec.sampling.top_k for spec in specs])
    probs = scores.softmax(dim=-1)
    probs = _keep_top_p(probs, [spec.sampling.top_p for spec in specs])
    probs = _keep_min_p(probs, [spec.sampling.min_p for spec in specs])
    numbers = [uniform(spec.sampling.seed, spec.child_index, spec.position) for spec in specs]
    cdf = probs.cumsum(dim=-1)
    total = cdf[:, -1:]
    # Below the total even after rounding, so that the last kept token ends the search.
    target = torch.minimum(_column(numbers, cdf) * total, torch.nextafter(total, 0 * total))
    found = torch.searchsorted(cdf, target, right=True)[:, 0]
    # Logits of NaN find nothing; the batch's other rows must not suffer from it.
    return found.clamp_max(cdf.shape[1] - 1)


def _keep_top_k(scores: torch.Tensor, top_k: Sequence[int]) -> torch.Tensor:
    """Drop what scores below the k-th; equals of the k-th stay."""
    vocab_size = scores.shape[1]
    rows = [i for i, k in enumerate(top_k) if 0 < k < vocab_size]
    if not rows:
        return scores
    index = torch.tensor(rows, device=scores.device)
    subset = scores[index]
    best = subset.topk(max(top_k[i] for i in rows), dim=-1).values
    places = torch.tensor([[top_k[i] - 1] for i in rows], device=scores.device)
    scores[index] = subset.masked_fill(subset < best.gather(1, places), float("-inf"))
    return scores


def _keep_top_p(probs: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """Keep the fewest likeliest tokens that reach p together; equals of the last stay."""
    rows = [i for i, p in enumerate(top_p) if p < 1]
    if not rows:
        return probs
    index = torch.tensor(rows, device=probs.device)
    wanted = _column([top_p[i] for i in rows], probs)
    subset = probs[index]
    best = subset.topk(min(TOP_P_CANDIDATES, subset.shape[1]), dim=-1).values
    floor = _nucleus_floor(best, wanted)
    flat = (best.sum(dim=-1) < wanted[:, 0]).nonzero()[:, 0]
    if len(flat):
        ordered = subset[flat].sort(dim=-1, descending=True).values
        floor[flat] = _nucleus_floor(ordered, wanted[flat])
    probs[index] = subset.masked_fill(subset < floor, 0.0)
    return probs


def _nucleus_floor(descending: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Probability of the first token with which the sum reaches what is wanted."""
    num_before = (descending.cumsum(dim=-1) < wanted).sum(dim=-1, keepdim=True)
    return descending.gather(1, num_before.clamp_max(descending.shape[1] - 1))


def _keep_min_p(probs: torch.Tensor, min_p: Sequence[float]) -> torch.Tensor:
    if not any(min_p):
        return probs
    floor = _column(min_p, probs) * probs.amax(dim=-1, keepdim=True)
    return probs.masked_fill(probs < floor, 0.0)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
