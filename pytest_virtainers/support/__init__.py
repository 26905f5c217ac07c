"""What has nothing to do with VMs: progress, waiting, paths, forks."""
