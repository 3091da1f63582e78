"""How a client brings requests to chains: our own way, and for benchmarks those of other systems.

`rules.Dispatch` is the seam: `opening` asks it what to do, and does it. `joining` are rules over the plan's chains with
places, `petals` and `bprr` those that compose a route for every request, over servers that have room in their caches.
"""
