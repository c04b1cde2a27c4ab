"""Which level of the information model an attribute belongs to (PS3.6 2022b as HealthImaging assigns it)."""

from typing import Final, Literal

from pydicom.datadict import tag_for_keyword

Level = Literal["Patient", "Study", "Series", "Instance"]

_TABLE: Final[dict[Level, dict[int, str]]] = {
    "Patient": {
        0x0008: "1120",
        0x0010: "0010 0020 0021 0022 0024 0026 0027 0030 0032 0033 0034 0035 0040 0200 0212 0213 0216 0218 0219 0221 "
        "1001 1002 1100 2160 2201 2202 2292 2293 2294 2297 2298 2299 4000",
        0x0012: "0010 0020 0021 0030 0031 0040 0042 0062 0063 0064 0081 0082",
    },
    "Study": {
        0x0008: "0020 0030 0050 0051 0090 0096 009C 009D 1030 1032 1048 1049 1060 1062 1080 1084 1110",
        0x0010: "1010 1020 1021 1022 1023 1024 1030 2000 2110 2180 21A0 21B0 21C0 21D0 2203",
        0x0012: "0050 0051 0052 0053 0083",
        0x0020: "000D 0010",
        0x0032: "1033 1034 1066 1067",
        0x0038: "0010 0014 0060 0062 0064 0500",
        0x0040: "1012",
    },
    "Series": {
        0x0008: "0021 0031 0060 0070 0080 0081 1010 1040 1041 1050 1052 1070 1072 1090 103E 103F 1111 1250",
        0x0010: "2210",
        0x0012: "0060 0071 0072",
        0x0018: "0015 1000 1002 1008 100A 100B 1020 1030 1050 1200 1201 5100",
        0x0020: "000E 0011 0052 0060 1040",
        0x0028: "0108 0109 0120",
        0x0040: "0275",
        0x300A: "0700",
    },
}

LEVELS: Final[dict[int, Level]] = {
    group << 16 | int(element, 16): level
    for level, groups in _TABLE.items()
    for group, elements in groups.items()
    for element in elements.split()
}
"""Tag -> level of every attribute above the instance."""


def level_of(tag: int) -> Level:
    """The attribute's level: whatever the table does not list, group 0002 and private data too, is the instance's."""
    return LEVELS.get(tag, "Instance")


def level_of_keyword(keyword: str) -> Level:
    """As `level_of`, by DICOM keyword; 8 hexadecimal digits and unknown words are the instance's."""
    tag = tag_for_keyword(keyword)
    return "Instance" if tag is None else level_of(tag)
