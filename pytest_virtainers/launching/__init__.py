"""Launch VMs: from a `Spec` to a VM that is ready.

`build` gives the parts of a launcher to each other. A launch passes the modules from top to bottom:

* `launcher`: take a prefetched VM (`prefetch`), clone or boot; several at once: `together`
* `guest_images`: the disk on which the VM is based
* `clones`: the template of its shape, from `templates` (`layering`, `once`), and what to do if a clone fails
* `bring_up`: start the VM by a boot (`cloud_init`) or a restore; `starting_vms`: wait for it, or leave nothing of it
* `containers`: start its container when there is memory (`memory_budget`); `container_plan`: what that should be
* `networks`: the network that it is on, and what is closed there (`isolation`)

Around them: `run_store` and `runtime_image` (those of a run), `failed` (VMs kept for evidence), `integrity` and
`damage` (files that change in the store), `disks` (of VMs that have ended), `lifetime`.
"""
