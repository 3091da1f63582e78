"""Links between peers: one long-lived link per pair carries all sessions."""
