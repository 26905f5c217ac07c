"""Helpers that know nothing of VMs: progress, waiting, files, locks, forks."""
