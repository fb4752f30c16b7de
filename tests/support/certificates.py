"""An untrusted certificate for signing content, created for each test, so that the repository contains no key."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["write_certificate"]

NO_USAGE = dict.fromkeys(
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
    "encipher_only decipher_only".split(),
    False,
)


def write_certificate(folder: Path) -> dict[str, str]:
    """Write `chain.pem`, the signer's certificate and that of its authority, and `key.pem`, the signer's key. Returns
    their paths as the settings of a batch name them."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("Test CA", authority_key, "Test CA", authority_key, is_authority=True)
    signer = _certificate("Signer", key, "Test CA", authority_key, is_authority=False)
    pem = serialization.Encoding.PEM
    chain_file, key_file = folder / "chain.pem", folder / "key.pem"
    chain_file.write_bytes(signer.public_bytes(pem) + authority.public_bytes(pem))
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return {"certificate": str(chain_file), "certificate_key": str(key_file)}


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    """A certificate with the fields that C2PA requires: names with an organisation, key usage, and key ids."""
    now = datetime.datetime.now(datetime.UTC)
    usage = {"key_cert_sign": True, "crl_sign": True} if is_authority else {"digital_signature": True}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**(NO_USAGE | usage)), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    facts = {NameOID.COUNTRY_NAME: "DE", NameOID.ORGANIZATION_NAME: "Test", NameOID.COMMON_NAME: common_name}
    return x509.Name([x509.NameAttribute(key, value) for key, value in facts.items()])
