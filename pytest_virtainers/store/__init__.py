"""The engine's volume with guest images and templates."""
