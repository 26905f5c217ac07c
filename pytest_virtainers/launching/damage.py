"""Stop using templates and guest images that turn out to be damaged while their VMs run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.launching.guest_images import GuestImages
    from pytest_virtainers.launching.integrity import Checked, Watch
    from pytest_virtainers.launching.templates import Template, Templates


class Damage:
    """Removes or blocks what the background check finds damaged, so that no further VM starts from it.

    Args:
        watch: the check.
        guests: guest images of the run.
        templates: templates of the run.
        in_use: returns whether a detached VM has its disk on a template, which then must stay.

    Attributes:
        found: messages about all that was found in this run.
    """

    def __init__(
        self, watch: Watch, guests: GuestImages, templates: Templates, in_use: Callable[[Template], bool]
    ) -> None:
        self._watch, self._guests, self._templates, self._in_use = watch, guests, templates, in_use
        self._unusable: dict[str, str] = {}  # places of templates that have to stay, and why they are not used
        self.found: list[str] = []

    def check(self, place: str, identity: str) -> None:
        """Check the content, known by `identity`, of a place from which a VM was started, in the background."""
        self._watch.want(place, identity)

    def stop(self) -> None:
        """Start no further check; one that is running ends soon."""
        self._watch.stop()

    def look(self) -> list[str]:
        """Return messages about what was found since the last call, and stop using it."""
        new = [self._condemn(each) for each in self._watch.damage()]
        self.found += new
        return new

    def why_unusable(self, template: Template) -> str:
        """Return why no VM may be cloned from a template that is still in the store; empty if it may."""
        return template.refusal or self._unusable.get(template.place, "")

    def _condemn(self, damaged: Checked) -> str:
        message = (
            f"{damaged}. VMs of this run were started from it, and their results may be wrong: run them "
            "again, and check the disk and the memory of the engine's host. "
        )
        refusal = f"{message}To make or download it again: virtainers store verify --remove"
        if self._guests.refuse(damaged.place, refusal):
            return refusal
        for layer in self._templates.made_from(damaged.place):
            if self._in_use(layer):
                self._unusable[layer.place] = "its template was copied from a damaged one, and a detached VM uses it"
            else:
                self._templates.forget(layer, condemned=True)
        template = self._templates.known(damaged.place)
        if template is not None and self._in_use(template):
            self._unusable[template.place] = "its template is damaged, and a detached VM uses it"
            return f"{message}It stays as long as the detached VM that has its disk on it; others are booted"
        if template is not None:
            self._templates.forget(template, condemned=True)
        return f"{message}It was removed and will be made again"
