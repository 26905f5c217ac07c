"""The pytest plugin: hooks, fixtures, markers, reports."""
