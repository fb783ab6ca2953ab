"""One child rank: computes its part of every step that the leader sends, until the leader ends.

python -m engine.ranks.worker --spec-json JSON
"""

import argparse
import logging
import os
import select
import socket
import sys
import threading

import torch

from core.errors import BatonError
from engine.ranks.channel import Channel
from engine.ranks.errors import ChannelClosed, GroupBroken
from engine.ranks.group import join_store
from engine.ranks.part import load_stage
from engine.ranks.pipeline import micro_batches
from engine.ranks.spec import DEVICE, RankFiles, RankSpec
from engine.ranks.stage import Stage
from engine.ranks.wire import Answer, decode_step, encode_answer
from engine.step_plan import plan_step


def serve(spec: RankSpec, channel: Channel, files: RankFiles) -> None:
    """Load, then compute what comes. Returns when the leader has hung up.

    Raises whatever ends a step: a rank that has missed one is of no more use.
    """
    # Imports are done: the leader need not fear to wait for a process that never gets here.
    channel.send(encode_answer(Answer()), spec.timeout_s)
    try:
        store = join_store(spec.store_port, spec.layout.num_workers, spec.timeout_s)
        stage = load_stage(spec, store, files, _never)
    except BatonError as error:
        channel.send(encode_answer(Answer(error=str(error))), spec.timeout_s)
        return _until_leader_ends(channel)
    channel.send(encode_answer(Answer()), spec.timeout_s)
    with torch.inference_mode():
        while True:
            frame = channel.receive(None)
            try:
                answer = _compute(stage, spec, frame)
            except GroupBroken as error:
                # Another rank's fault: our own end would only hide whose.
                channel.send(encode_answer(Answer(error=str(error))), spec.timeout_s)
                return _until_leader_ends(channel)
            channel.send(encode_answer(answer), spec.timeout_s)


def _compute(stage: Stage, spec: RankSpec, frame: bytes) -> Answer:
    step = decode_step(frame)
    batches = micro_batches(step.entries, step.pieces)
    plans = [plan_step(batch, spec.block_size, DEVICE) for batch in batches]
    if copies := [pair for entry in step.entries for pair in entry.copies]:
        stage.kv_cache.copy_blocks(copies)
    _, spent = stage.run(plans)
    return Answer(spent)


def _never() -> bool:
    """Whether the others have ended: the leader would end us first, in any wait."""
    return False


def _until_leader_ends(channel: Channel) -> None:
    while True:
        channel.receive(None)


def _end_with_leader(channel_fd: int) -> None:
    """Blocks until the leader's end is closed, however busy or stuck the other thread is."""
    poll = select.poll()
    # No event asked for: the end of the other side is always reported.
    poll.register(channel_fd, 0)
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve one leader."""
    parser = argparse.ArgumentParser(prog="python -m engine.ranks.worker")
    parser.add_argument("--spec-json", required=True, help="what RankSpec.to_json writes")
    parser.add_argument("--channel-fd", required=True, type=int, help="socket to the leader")
    parser.add_argument("--kv-fd", required=True, type=int, help="file of its KV")
    parser.add_argument("--sums-fd", required=True, type=int, help="file of its stage's sums")
    arguments = parser.parse_args()
    spec = RankSpec.from_json(arguments.spec_json)
    logging.basicConfig(
        level="WARNING",
        format=f"%(asctime)s rank {spec.rank} %(name)s %(message)s",
        stream=sys.stderr,
    )
    threading.Thread(target=_end_with_leader, args=(arguments.channel_fd,), daemon=True).start()
    try:
        channel = Channel(socket.socket(fileno=arguments.channel_fd))
        serve(spec, channel, RankFiles(arguments.kv_fd, arguments.sums_fd))
    except ChannelClosed:
        # The leader has closed, or is no more: either way there is nobody to compute for.
        return


if __name__ == "__main__":
    main()
