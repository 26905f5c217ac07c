"""The store: a volume or directory of the engine with guest images and templates."""
