"""Docker and Podman, over the docker SDK: the only package that imports it."""
