"""The container engine, Docker or Podman, behind the docker SDK. Knows nothing of virtual machines."""
