"""What may be made of texts under a licence. Pure; no substitute for reading the licence."""

import re
from collections.abc import Iterable, Mapping

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

SHIPPED = "Apache-2.0"  # the licence of every built-in set
# What lets a set made from the texts go out under another licence; of everything else that is not known here.
_PERMISSIVE = re.compile(
    r"CC0-1\.0|CC-PDDC|CC-PDM-1\.0|PDDL-1\.0|Unlicense|0BSD|MIT(-0)?|ISC|Zlib|PostgreSQL|BSL-1\.0|Apache-2\.0"
    r"|BSD-[1-4]-Clause|CC-BY-[1-4]\.[05](-[A-Z]+)?|CDLA-Permissive-[12]\.0|ODC-By-1\.0"
)


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

    ``licences`` maps a source to its SPDX expression; built-in sources are known. What is unknown may not be
    republished, and what is not known to be permissive goes out under its own licence alone.
    """
    found: list[str] = []
    for source in dict.fromkeys(sources):
        stated = stated_for(source, licences=licences)
        known = spdx(stated)
        if known is None:
            found.append(f"the licence of the seeds from {source or 'an unnamed source'} is {stated!r}")
        elif bad := _in_the_way(known, licence=licence):
            under = known if bad == [known] else f"{known} ({', '.join(bad)})"
            why = (
                "forbids it"
                if any(map(_is_closed, bad))
                else f"asks for that licence as far as is known here, not {licence}"
            )
            found.append(f"the seeds from {source} are under {under}, which {why}")
    return found


def _in_the_way(known: str, *, licence: str) -> list[str]:
    """Those licences of an SPDX expression that do not allow ``licence``: of AND all count, of OR the better side."""
    tokens = re.findall(r"[()]|[^\s()]+", known)

    def either() -> list[str]:
        best = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            best = min(best, both(), key=len)
        return best

    def both() -> list[str]:
        bad = one()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            bad = bad + one()
        return bad

    def one() -> list[str]:
        name = tokens.pop(0)
        if name == "(":
            inner = either()
            tokens.pop(0)
            return inner
        whole = name
        if tokens[:1] == ["WITH"]:
            whole = f"{name} {tokens.pop(0)} {tokens.pop(0)}"
        same = whole == spdx(licence) and not _is_closed(whole)
        return [] if same or _PERMISSIVE.fullmatch(name.removesuffix("+")) else [whole]

    return [] if known == spdx(licence) and not _is_closed(known) else either()


def _is_closed(known: str) -> bool:
    """Whether a licence forbids commercial use or changes."""
    return "-NC" in known or "-ND" in known or "noncommercial" in known.lower()
