"""SSH to a guest: keys, connections, and sessions that outlive their connection."""
