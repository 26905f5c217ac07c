"""What the rest of this package needs from a container engine.

`engine.docker` implements these protocols for Docker and Podman. Every method that asks the engine raises
`EngineError` when the engine fails or refuses; no other exception of an implementation passes through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from ipaddress import IPv4Network
    from pathlib import Path

    from pytest_virtainers.engine.facts import Addresses, ContainerInfo, Image, NetworkInfo, Volume
    from pytest_virtainers.engine.output import Output
    from pytest_virtainers.engine.plan import Bind, NetworkPlan, Plan, Port
    from pytest_virtainers.engine.tar import Link


class Stream(Protocol):
    """A command's stdin and stdout as a socket, as `paramiko.Transport` needs it."""

    def settimeout(self, seconds: float | None) -> None:
        """Limit each `recv` and `send`, in seconds."""

    def send(self, data: bytes) -> int:
        """Write some of `data` to stdin; return how many bytes."""

    def recv(self, size: int) -> bytes:
        """Read at most `size` bytes of stdout; empty at its end."""

    def wait_for_output(self) -> None:
        """Wait for the first output on stdout; raise `ConnectionError` with stderr when the command ends first."""

    def close_input(self) -> None:
        """Close stdin; stdout can still be read."""

    def close(self) -> None:
        """End the session."""


class Container(Protocol):
    """One container."""

    @property
    def id(self) -> str:
        """The engine's id; raises `EngineError` after its removal, and `VirtainerError` in a forked child."""

    @property
    def name(self) -> str:
        """The engine's name."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which it was created."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""

    @property
    def network(self) -> str:
        """The engine's name of the network on which it was created; empty: the default network."""

    @property
    def volume(self) -> str | None:
        """The volume that was created with it, and that `close` removes."""

    @property
    def binds(self) -> tuple[Bind, ...]:
        """The mounts of its plan."""

    @property
    def stdout(self) -> Output:
        """What it has written to stdout since `start` or `follow`."""

    @property
    def stderr(self) -> Output:
        """What it has written to stderr since `start` or `follow`."""

    @property
    def ended(self) -> bool:
        """Whether its output has reached its end, as it does when the container ends."""

    def start(self) -> None:
        """Attach the lease, if the plan has one, and start; remove the container if it does not start."""

    def follow(self) -> None:
        """Collect the output of an adopted container, from its last start on."""

    def logs(self, *, follow: bool) -> Iterator[tuple[bool, bytes]]:
        """Yield what it has written, and whether to stderr; with `follow`, until the container ends."""

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` until it has ended; return whether it has."""

    def stop(self, seconds: int) -> int | None:
        """Send SIGTERM, and SIGKILL after `seconds`; return the exit code, or `None` if it was removed at its end."""

    def addresses(self, network: str | None = None, *, refresh: bool = False) -> Addresses:
        """Return its addresses on a network, by default on that of its plan.

        Args:
            network: the engine's name of the network.
            refresh: ask the engine even if it was asked before.
        """

    def connect(self, port: Port) -> Addresses:
        """Connect the running container to one more network."""

    def disconnect(self, network: str) -> None:
        """Disconnect it from a network; no error if it is not connected."""

    def run(
        self, command: list[str], on_output: Callable[[bytes], object] = ..., *, patience: float | None = None
    ) -> tuple[int, bytes]:
        """Run a command in the container and wait for its end.

        Args:
            command: the program and its arguments.
            on_output: called with each piece of output as it arrives.
            patience: seconds without output after which it fails; `None`: no limit.

        Returns:
            The exit code, and stdout and stderr in one.

        Raises:
            EngineError: the engine failed, or the command was silent for too long.
        """

    def stream(self, command: list[str]) -> Stream:
        """Start a command in the container and return its stdin and stdout."""

    def put(self, folder: str, members: Mapping[str, bytes | Link]) -> None:
        """Put small files, private to root, and links into an existing folder, before or after the start."""

    def put_archive(self, folder: str, archive: bytes | Iterator[bytes]) -> None:
        """Unpack a tar stream into a folder."""

    def archive(self, path: str) -> Iterator[bytes] | None:
        """Return a file or folder as a tar stream; `None` if there is nothing at `path`."""

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to a new private file of this host; long runs of zeros become holes.

        Raises:
            EngineError: the engine failed or stalled, there is no such file, or `target` exists.
        """

    def read(self, path: str) -> bytes:
        """Return the content of a small file, whether the container runs or not."""

    def keep(self, name: str) -> None:
        """Rename it to its lasting name; from now on `close` does not remove it."""

    def close(self) -> None:
        """End the lease, and remove the container and its volume unless it is kept; repeated calls do nothing.

        In a forked child it does nothing.
        """

    def remove(self) -> None:
        """Remove it, even if it is kept, but leave its volume."""


class Network(Protocol):
    """A network of the engine."""

    @property
    def name(self) -> str:
        """The engine's name."""

    @property
    def subnet(self) -> IPv4Network | None:
        """Its IPv4 addresses; `None`: the engine knows none."""

    @property
    def ipv6(self) -> bool:
        """Whether it also has IPv6."""

    @property
    def driver(self) -> str:
        """The engine's driver. Only on `bridge` networks is the engine's host a member of the network."""

    def close(self) -> None:
        """Remove it if it was created here; in a forked child it does nothing."""


class Engine(Protocol):
    """A connection to a container engine; `str` returns what it is and where, for people."""

    @property
    def kind(self) -> str:
        """`docker` or `podman`."""

    @property
    def url(self) -> str:
        """Its address, with which `detect.find` connects again."""

    @property
    def arch(self) -> str:
        """The architecture of its host: `amd64`, `arm64`, …."""

    @property
    def is_local(self) -> bool:
        """Whether it probably runs on this host."""

    @property
    def lifelines(self) -> tuple[int, ...]:
        """File descriptors that another process must inherit to use the engine after this process has ended."""

    def memory_mib(self) -> int:
        """Return the memory of its host in MiB."""

    def storage_driver(self) -> str:
        """Return what it stores images and containers with, such as `overlay2` or `vfs`."""

    def memory_used_mib(self, container: str) -> int:
        """Return the MiB that a container uses, without page cache if the engine knows; 0 after its end."""

    def command_line(self) -> list[str]:
        """Return the words of a shell command that reaches this engine, such as `["docker", "-H", URL]`."""

    def create(self, plan: Plan, run_id: str) -> Container:
        """Create a container that this run owns; nothing runs in it yet."""

    def adopt(self, name: str) -> Container:
        """Return an existing container by its name or id; `Container.close` leaves it running."""

    def containers(self, *labels: str) -> list[ContainerInfo]:
        """List the containers, running or not, with all of these labels: `NAME` or `NAME=VALUE`."""

    def create_network(self, plan: NetworkPlan, run_id: str) -> Network:
        """Create a network that this run owns, on a subnet that neither this host nor the engine uses."""

    def network(self, name: str) -> Network:
        """Return an existing network, which `Network.close` leaves as it is."""

    def networks(self) -> list[NetworkInfo]:
        """List all networks."""

    def volume(self, name: str) -> Volume | None:
        """Return a volume, or `None` if there is none of this name."""

    def image(self, reference: str) -> Image | None:
        """Return an image, or `None` if the engine does not have it."""

    def pull(self, reference: str, on_message: Callable[[str], object], arch: str | None = None) -> str:
        """Pull an image if a registry has it.

        Args:
            reference: the image's name.
            on_message: called with each message of the engine.
            arch: an architecture other than that of the engine's host.

        Returns:
            The engine's last message: why there is no such image, if there is none afterwards.
        """

    def build(
        self,
        context: bytes | Iterator[bytes],
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        on_line: Callable[[str], object],
    ) -> None:
        """Build an image.

        Args:
            context: a tar stream with a `Dockerfile`.
            tag: name and tag of the image.
            arguments: values of the `ARG`s of the Dockerfile.
            labels: labels of the image.
            on_line: called with each line of the build's output.

        Raises:
            ImageError: the build failed; the message has its last lines.
        """

    def import_image(self, tarball: str, reference: str) -> None:
        """Create an image whose only layer is a tar file of this host."""

    def sweep(self, run_id: str | None = None) -> list[str]:
        """Remove containers, then networks and volumes, whose owner is dead.

        Detached containers stay, and so does their network while one of them exists. What cannot be removed now is
        left to the next sweep.

        Args:
            run_id: remove all that this run owns instead, even if its process is alive.

        Returns:
            The names of what was removed.
        """

    def close(self) -> None:
        """Close the connection; in a forked child it does nothing."""
