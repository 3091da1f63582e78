"""The gateway: a swarm behind the HTTP API that OpenAI's clients speak, on the light client."""
