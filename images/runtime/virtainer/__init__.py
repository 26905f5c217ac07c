"""Runs one QEMU virtual machine inside one container, as its PID 1. Standard library only."""
