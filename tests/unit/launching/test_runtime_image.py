"""The runtime image of a run."""

import pytest

from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.base import Engine
from pytest_virtainers.errors import ImageError
from pytest_virtainers.launching.once import Once
from pytest_virtainers.launching.runtime_image import RuntimeImage
from pytest_virtainers.support.progress import SILENT


def test_a_runtime_image_that_cannot_be_built_is_not_tried_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def ensure(*_: object) -> str:
        tried.append(_)
        raise ImageError("no package mirror")

    monkeypatch.setattr(runtime_image, "ensure", ensure)
    image = RuntimeImage(engine, Once(), SILENT)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"^no package mirror$"):
            image.reference()
    assert len(tried) == 1


def test_an_image_that_the_engine_has_is_not_built(engine: Engine) -> None:
    image = RuntimeImage(engine, Once(), SILENT)
    assert image.is_built()
    assert (image.reference(), image.id()) == (runtime_image.reference(), "sha256:runtime")
