"""The health page: what a swarm does now, as JSON, as a stream of events, and as one page for people."""
