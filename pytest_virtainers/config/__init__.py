"""What a user can set: options, settings, the arguments of a VM, and their types."""
