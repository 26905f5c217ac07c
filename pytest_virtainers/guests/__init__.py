"""Guest images: where their disks come from, and what is known of them."""
