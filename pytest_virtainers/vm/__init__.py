"""The handle of a running VM: what tests write against."""
