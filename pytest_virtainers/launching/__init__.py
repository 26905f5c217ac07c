"""From the arguments of a VM to one that is up: templates, clones, boots, networks."""
