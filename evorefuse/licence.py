"""What may be made of texts under a licence. Pure; no substitute for reading the licence."""

from collections.abc import Iterable, Mapping

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

SHIPPED = "Apache-2.0"  # the licence of every built-in set
_SHARE_ALIKE = ("GPL", "AGPL", "LGPL", "ODbL")


def spdx(licence: str) -> str | None:
    """The SPDX id in its canonical form; None where SPDX does not know it."""
    try:
        found = str(canonicalize_license_expression(licence))
    except InvalidLicenseExpression:
        return None
    return None if found.startswith("LicenseRef-") else found


def stated_for(source: str, *, licences: Mapping[str, str]) -> str:
    """The licence of the texts from a source, as stated; ``unknown`` where nobody has."""
    return SHIPPED if source.startswith("builtin:") else licences.get(source, "unknown")


def objections(sources: Iterable[str], *, licence: str, licences: Mapping[str, str]) -> list[str]:
    """Why a set made from texts of these sources may not be republished under ``licence``; none where it may.

    ``licences`` maps a source to its SPDX id; built-in sources are known. What is unknown may not be republished.
    """
    found: list[str] = []
    for source in dict.fromkeys(sources):
        stated = stated_for(source, licences=licences)
        known = spdx(stated)
        if known is None:
            found.append(f"the licence of the seeds from {source or 'an unnamed source'} is {stated!r}")
        elif "-NC" in known or "-ND" in known or "noncommercial" in known.lower():
            found.append(f"the seeds from {source} are under {known}, which forbids it")
        elif ("-SA-" in known or known.startswith(_SHARE_ALIKE)) and known != spdx(licence):
            found.append(f"the seeds from {source} are under {known}, which asks for that licence, not {licence}")
    return found
