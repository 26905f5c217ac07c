"""SSH to a guest: keys, connections, and sessions that can be resumed."""
