"""Who is in the swarm and what each server holds: identity, token, records, view."""
