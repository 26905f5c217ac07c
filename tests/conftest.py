import datetime
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import settings

from tests.unit import hostile_server
from tests.unit.hostile_server import HostileServer

pytest_plugins = ["pytester"]

# CI tries the same examples each time; `./dev thorough` looks for new ones (tox -e fuzz).
settings.register_profile("quick", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile("thorough", database=None, deadline=None, max_examples=2000)
settings.load_profile("quick")


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with hostile_server.running() as found:
        yield found


@pytest.fixture
def secure(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    """Return a server with TLS, and a certificate that clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem, raw, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, raw, plain))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with hostile_server.running(file) as found:
        yield found
