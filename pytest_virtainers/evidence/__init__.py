"""Evidence of failing tests: collect it, and resume VMs from it."""
