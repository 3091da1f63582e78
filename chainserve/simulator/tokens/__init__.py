"""The simulator at the level of tokens: what a swarm's servers, links and clients do step by step.

`values` and `membership` say what goes in, `run.simulate` plays it, `outcome` is what comes out. In between: `servers`
(the batching loop), `links` (messages on their way) and `admission` (which chain a session joins, and who waits).
"""
