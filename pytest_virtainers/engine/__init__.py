"""Container engines: the protocol (`base`), Docker and Podman (`docker`). Nothing here knows what a VM is."""
