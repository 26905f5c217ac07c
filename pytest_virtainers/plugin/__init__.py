"""What pytest calls: hooks, fixtures, markers, reports."""
