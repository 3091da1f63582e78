"""`chainserve doctor`: what of this machine, and between it and a swarm, is as it should be, and what to do if not."""
