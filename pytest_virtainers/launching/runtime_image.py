"""The runtime image of a run: built when it is first needed, and not again if that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.engine import runtime_image
from pytest_virtainers.errors import ImageError

if TYPE_CHECKING:
    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.launching.once import Once
    from pytest_virtainers.support.progress import Progress


class RuntimeImage:
    """The container image with QEMU and the supervisor, on one engine.

    Args:
        engine: the engine that builds and has it.
        once: suspends the time limit of the test that builds it.
        progress: where the build is shown.
    """

    def __init__(self, engine: Engine, once: Once, progress: Progress) -> None:
        self._engine, self._once, self._progress = engine, once, progress
        self._reference: str | None = None
        self._failure = ""

    def reference(self) -> str:
        """Return the image's reference, and build the image if it is missing.

        Raises:
            ImageError: it cannot be built; further calls raise the same without another try.
        """
        if self._failure:
            raise ImageError(self._failure)
        if self._reference is None:
            try:
                with self._once.without_time_limit():
                    self._reference = runtime_image.ensure(self._engine, self._progress)
            except ImageError as error:
                self._failure = str(error)
                raise
        return self._reference

    def id(self) -> str:
        """Return the id of the image, which changes with its content; raises as `reference` does."""
        return runtime_image.image_id(self._engine, self.reference())

    def is_built(self) -> bool:
        """Return whether the engine has the image; raises `EngineError`."""
        return runtime_image.present(self._engine)
