"""Content Credentials: signed C2PA manifests in PNGs, which state that a model has generated the picture.

Pictures are signed only if a certificate is given. A signature contains a random number, so signing a picture again
gives other bytes; a picture with a valid signature is therefore kept. No timestamp authority is used, and no network.
"""

import contextlib
import io
import json
from pathlib import Path

from dalle.errors import DalleError
from dalle.version import __version__

__all__ = ["Credentials"]

ALGORITHMS = (b"es256", b"es384", b"es512", b"ps256", b"ed25519")
TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class Credentials:
    """Signs PNGs with a certificate, and checks their signatures."""

    def __init__(self, certificate: str, key: str) -> None:
        """Load two PEM files: a chain of certificates, the signer's first, and its private key (PKCS#8).

        The signature algorithm is found by trying. Raises `DalleError` for files that cannot be used, or if the package
        c2pa-python is not installed.
        """
        try:
            import c2pa
        except ImportError as error:
            raise DalleError("signing needs the package c2pa-python: pip install 'dalle-serve[c2pa]'") from error
        try:
            chain, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
        except OSError as error:
            raise DalleError(f"{error.filename} cannot be read: {error.strerror}") from error
        self._c2pa = c2pa
        self._signer: c2pa.Signer | None = None
        # a thumbnail would be larger than the picture
        self._context = c2pa.Context(c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}}))
        for algorithm in ALGORITHMS:
            with contextlib.suppress(c2pa.C2paError):
                self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, secret, None))
                break
        if self._signer is None:
            raise DalleError(f"{certificate} and {key} cannot sign: they must be a PEM chain and its PKCS#8 key")

    def sign(self, png: bytes) -> bytes:
        """Add a signed manifest to a PNG. Raises `DalleError` if the certificate does not allow signing content."""
        software = {"name": "dalle", "version": __version__}
        created = {"action": "c2pa.created", "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA, "softwareAgent": software}
        manifest = {
            "claim_generator_info": [software],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
        }
        signed = io.BytesIO()
        try:
            with self._c2pa.Builder(json.dumps(manifest), self._context) as builder:
                builder.sign(self._signer, "image/png", io.BytesIO(png), signed)
        except self._c2pa.C2paError as error:
            raise DalleError(f"the picture cannot be signed: {error}") from error
        return signed.getvalue()

    def has_signed(self, png: bytes) -> bool:
        """Whether a PNG has a signed manifest that is valid for its content."""
        try:
            with self._c2pa.Reader("image/png", io.BytesIO(png)) as reader:
                return reader.get_validation_state() in ("Valid", "Trusted")
        except self._c2pa.C2paError:
            return False
