"""Example digests of a disk, and its name."""

SHORT, OTHER, LONG = "0123456789abcdef" * 4, "f" * 64, "0123456789abcdef" * 8
NAME = "disk-1.2.x86_64.qcow2"
