"""A certificate of our own for links that leave the machine.

Nobody vouches for it: its fingerprint stands in our signed record, and who connects compares the two.
"""

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LIFETIME = timedelta(days=3650)  # of no weight: made anew at each start


def self_signed() -> tuple[ssl.SSLContext, str]:
    """A server's TLS context with a new certificate, and the certificate's SHA-256 in hex."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "chainserve")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + LIFETIME)
        .sign(key, hashes.SHA256())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with TemporaryDirectory(prefix="chainserve-") as folder:  # the ssl module reads keys from files only
        path = Path(folder) / "certificate.pem"
        path.write_bytes(private_pem + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path)
    fingerprint = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    return context, fingerprint
