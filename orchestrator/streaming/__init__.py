"""Streamed rounds: the windows to come are searched while the learner learns the one before (policy `streaming`).

One job per daemon lasts for many windows; the orchestrator hands out windows, relays references, and commits now and then:

    searcher <--push window, network--+                  +--push targets--> learner
             --targets are written-->  schedule  running  <--network is written--
                                              |
                                         committing (a thread): flush, segment document, journal, prune

schedule    which window may be searched now, and on which network: pure
feeds       a stream job on a daemon: started, watched on a thread, given items
tending     which stream jobs stand still, and what is waited for
rounds      what a round's items become: report and search record
committing  what makes rounds count, and what is removed after
running     the loop, and going on after a crash
"""

from orchestrator.streaming.running import stream_rounds

__all__ = ["stream_rounds"]
