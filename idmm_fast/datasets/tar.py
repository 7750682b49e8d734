"""Tars are read to their end: tarfile alone takes a damaged or missing header for the end of the archive."""

import tarfile


class StrictTarInfo(tarfile.TarInfo):
    """For tarfile.open(..., tarinfo=StrictTarInfo): an archive that does not end in zero bytes raises a ReadError."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "StrictTarInfo":
        """See tarfile.TarInfo.fromtarfile."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it; the zero bytes
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it is damaged or cut short, at byte {archive.offset}: {error}") from None
