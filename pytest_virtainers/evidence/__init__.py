"""What a failing test leaves, and machines that go on from it."""
