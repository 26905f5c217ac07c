"""Guest images: catalogue, downloads, and disks in the store."""
