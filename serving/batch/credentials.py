"""Content Credentials: a manifest of C2PA in a PNG, signed, that says a model has drawn it.

Off unless a certificate is given. A signature has a random number in it, so a picture that is signed twice has other
bytes each time, and one that is signed already is left as it is. Nobody is asked for the time: no network is used.
"""

import contextlib
import io
import json
from pathlib import Path

from dalle.errors import DalleError
from dalle.version import __version__

__all__ = ["Credentials"]

ALGORITHMS = (b"es256", b"es384", b"es512", b"ps256", b"ed25519")
DRAWN_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class Credentials:
    """Signs PNGs."""

    def __init__(self, certificate: str, key: str) -> None:
        """PEM files: a chain of certificates, the signer's first, and its private key (PKCS#8). What kind of key it is
        is tried. Raises `DalleError` for files that cannot be used, and without the package c2pa-python."""
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
        """The PNG with a signed manifest. Raises `DalleError` if the certificate is not one for signing content."""
        software = {"name": "dalle", "version": __version__}
        created = {"action": "c2pa.created", "digitalSourceType": DRAWN_BY_A_MODEL, "softwareAgent": software}
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
        """Whether it has a signed manifest that fits it."""
        try:
            with self._c2pa.Reader("image/png", io.BytesIO(png)) as reader:
                return reader.get_validation_state() in ("Valid", "Trusted")
        except self._c2pa.C2paError:
            return False
