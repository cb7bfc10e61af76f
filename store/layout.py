"""Where things lie in a run's folder. Rounds, shards and attempts are numbered from 0, epochs from 1.

run.json                                     config, digests, seed, versions
rounds/00000/network/initial.pack            the network searched in round 0; whoever is first creates it
rounds/00003/network/learned-a1              the network learned by attempt 1
rounds/00003/epochs/a01-e0007                the network of attempt 1 after epoch 7, where `learn.snapshots` keeps it
rounds/00003/search/00017-a2                 shard 17, attempt 2
rounds/00003/round.json, report.json         the attempts that count; the figures of the round
checkpoints/00003/a01-e0007                  the learner's state of attempt 1 after epoch 7
states/00003/a1                              the learner's state after the round, with `learn.start = "continue"`
stream/targets/00000123-a1001.pack           targets of window 123 of a streamed run: the first attempt of term 1
stream/networks/00000123-a1001.pack          the network learned from it
stream/states/00000123-a1001.pack            the learner's state after it, where a segment ends
stream/segments/00000100.json                what is committed of a streamed run: the rounds from 100 to the next segment
config.json                                  the file the run was started from, of a store that is not the run's folder
terms/00002.json, 00002-beat.json            who works on the run in term 2, and that it does, of such a store
pruned.json                                  the round below which targets and networks were removed
"""

from __future__ import annotations

import re

from repsearch.errors import StoreError

RUN_DOCUMENT = "run.json"
RUN_SCHEMA = 1
"""Version of a run's folder: of `run.json`, and of every other document in it; a reader refuses any other."""
ROUNDS_FOLDER = "rounds"
STREAM_FOLDER = "stream"


def round_folder(round: int) -> str:
    """Folder of everything of a round but the checkpoints."""
    return f"{ROUNDS_FOLDER}/{round:05d}"


def network_folder(round: int) -> str:
    """Folder of a round's networks."""
    return f"{round_folder(round)}/network"


def search_folder(round: int) -> str:
    """Folder of a round's shards, all attempts."""
    return f"{round_folder(round)}/search"


def checkpoint_folder(round: int) -> str:
    """Folder of a round's checkpoints, all attempts."""
    return f"checkpoints/{round:05d}"


def initial_network_path() -> str:
    """The untrained network that round 0 searches."""
    return f"{network_folder(0)}/initial"


def learned_network_path(round: int, attempt: int) -> str:
    """The network learned in a round by one attempt."""
    return f"{network_folder(round)}/learned-a{attempt}"


def snapshot_path(learned: str, attempt: int, epoch: int) -> str:
    """The network after an epoch of the learning by `attempt` whose result is the group `learned`."""
    return f"{snapshot_folder(learned)}/a{attempt:02d}-e{epoch:04d}"


def snapshot_folder(learned: str) -> str:
    """Folder of the networks by epoch of the round that the network `learned` is of."""
    return f"{learned.rsplit('/', 2)[0]}/epochs"


def shard_path(round: int, shard: int, attempt: int) -> str:
    """One attempt at a shard of a round."""
    return f"{search_folder(round)}/{shard:05d}-a{attempt}"


def checkpoint_path(round: int, attempt: int, epoch: int, step: int = 0) -> str:
    """The learner's state of an attempt after an epoch, and so many steps of the next; names sort by attempt, epoch and step."""
    return f"{checkpoint_folder(round)}/a{attempt:02d}-e{epoch:04d}{f'-s{step:06d}' if step else ''}"


def state_path(round: int, attempt: int) -> str:
    """The learner's state after a round, from which the next round goes on."""
    return f"{state_folder(round)}/a{attempt}"


def state_folder(round: int) -> str:
    """Folder of the learner's state after a round, all attempts."""
    return f"states/{round:05d}"


def round_document(round: int) -> str:
    """The document that says which attempts of a round count."""
    return f"{round_folder(round)}/round.json"


def report_document(round: int) -> str:
    """The document with the figures of a round."""
    return f"{round_folder(round)}/report.json"


PRUNED_DOCUMENT = "pruned.json"
GROUP_ROOTS = (ROUNDS_FOLDER, STREAM_FOLDER, "checkpoints", "states")
"""Folders that hold all groups."""
SEGMENTS_FOLDER = "stream/segments"
STATES_FOLDER = "stream/states"
STREAM_FOLDERS = ("stream/targets", "stream/networks", STATES_FOLDER)
_STREAMED = re.compile(r"stream/(?:targets|networks|states)/(\d{8,})-a\d+", re.ASCII)
_REMOVABLE = re.compile(r"rounds/(\d{5,})/(?:search/[^/]+|epochs/[^/]+|network/learned-a\d+)", re.ASCII)


def stream_paths(round: int, attempt: int) -> tuple[str, str, str]:
    """Targets, network and learner's state of a round of a streamed run, by one attempt."""
    targets, networks, states = (f"{folder}/{round:08d}-a{attempt}" for folder in STREAM_FOLDERS)
    return targets, networks, states


def streamed_round(path: str) -> int | None:
    """Return the round of a group of a streamed run; None for any other path."""
    match = _STREAMED.fullmatch(path)
    return int(match[1]) if match else None


def removable_round(path: str) -> int | None:
    """Return the round of a group that goes when its round is old (`rounds.keep`); None for any other path."""
    match = _STREAMED.fullmatch(path) or _REMOVABLE.fullmatch(path)
    return int(match[1]) if match else None


def segment_document(first_round: int) -> str:
    """The document that commits the rounds of a streamed run from `first_round` to the next such document."""
    return f"{SEGMENTS_FOLDER}/{first_round:08d}.json"


def parse_shard_name(name: str) -> tuple[int, int]:
    """Return shard and attempt of a name such as "00017-a2"; raises `StoreError` for another form."""
    return _numbers(r"(\d{5,})-a(\d+)", name, "a shard attempt, such as 00017-a2")


def parse_checkpoint_name(name: str) -> tuple[int, int]:
    """Return attempt and epoch of a checkpoint or snapshot such as "a01-e0007"; raises `StoreError` for another form."""
    return _numbers(r"a(\d{2,})-e(\d{4,})", name, "a checkpoint, such as a01-e0007")


def parse_step(name: str) -> tuple[int, int, int]:
    """Return attempt, epoch and step of a checkpoint, such as "a01-e0007" or, within epoch 8, "a01-e0007-s000120"."""
    whole, _, step = name.partition("-s")
    if step and not re.fullmatch(r"\d{6,}", step, re.ASCII):
        raise StoreError(f"{name!r} does not name a checkpoint, such as a01-e0007-s000120; nothing else belongs in that folder")
    return (*parse_checkpoint_name(whole), int(step or 0))


def _numbers(pattern: str, name: str, expected: str) -> tuple[int, int]:
    match = re.fullmatch(pattern, name, re.ASCII)
    if match is None:
        raise StoreError(f"{name!r} does not name {expected}; nothing else belongs in that folder")
    return int(match[1]), int(match[2])
