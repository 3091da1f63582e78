"""The planning code under a virtual clock: what a swarm would do, without one.

`workloads` and `networks` make the input, `engine` runs it through a scheduler (`chains`: planned chains under a
dispatch policy), `report` sums up what came out. Everything is decided by its arguments and their seeds.
"""
