"""Whether a baseline JPEG is intact: its Huffman codes are read from the first to the last, without making a pixel.

Several times as fast as decoding. It knows the common form only (one interleaved scan, 8 bits, tables 0 and 1, sampling
factors 1 and 2) and says no to everything else, so "no" means: ask libjpeg-turbo. "Yes" means that libjpeg-turbo reads
it without a warning, since the loader takes a warning for damage. What it warns of in the form known here: a JFIF
version other than 1 and an Adobe transform other than 0 and 1 (jdmarker.c, jdapimin.c), bytes between segments
(next_marker), codes that are none, too few or too many bytes in a scan (jdhuff.c).

Source: ITU-T T.81, annexes B, C and F. An entry of a table of codes is an int32: the bits of the code and its value,
how many coefficients it advances << 8, the bits of the code alone << 16.
"""

import numpy as np

from ..kernels.jit import kernel

# Markers: the second byte, after 0xFF (T.81, table B.1).
SOF0, SOF1, DHT, RST0, SOI, EOI, SOS, DQT, DRI = 0xC0, 0xC1, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
APP0, APP1, APP14, APP15, COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE

LOOKUP_BITS = 11  # codes up to this length are found in one look-up
OVERREAD = 2048  # bytes that may be read beyond the end before it is noticed: those of an MCU
EOB = 192  # what an end-of-block code adds to the coefficient's number: so much that it can't be mistaken for a run
INVALID = 65 << 8  # the entry of what is no code, or of a longer one: as if it led beyond the block
MAX_SIDE = 65500  # pixels: libjpeg's JPEG_MAX_DIMENSION
MAX_BLOCKS = 1 << 20  # of a component: so many DC differences can't overflow, which libjpeg-turbo checks
_JFIF, _ADOBE = tuple(b"JFIF\0"), tuple(b"Adobe")


@kernel
def _read_dht(data, at, end, tables_seen, lookup, max_code, offset, symbols):
    """Read a DHT segment. Returns whether it is in order.

    Args:
        data: uint8, 1-d.
        at: where the segment's content begins.
        end: where it ends.
        tables_seen: bool (8,), see `is_intact`; those in the segment are set.
        lookup: int32 (8, 1 << LOOKUP_BITS); the first four are filled with entries, or INVALID.
        max_code: int32 (4, 17), filled: the last code of each length.
        offset: int32 (4, 17), filled: what to add to a code to get the number of its symbol.
        symbols: uint8 (4, 256), filled.
    """
    while at < end:
        if at + 17 > end:
            return False
        kind, number = data[at] >> 4, data[at] & 15
        if kind > 1 or number > 1:
            return False
        t = 2 * kind + number
        tables_seen[4 + t] = True
        lookup[t] = INVALID
        code = count = 0
        for length in range(1, 17):
            some = int(data[at + length])
            if count + some > 256 or at + 17 + count + some > end:
                return False
            if some and code + some >= 1 << length:  # no code may be all ones
                return False
            offset[t, length] = count - code
            max_code[t, length] = code + some - 1 if some else -1
            for i in range(some):
                symbol = data[at + 17 + count + i]
                symbols[t, count + i] = symbol
                if kind == 0 and symbol > 11:
                    return False
                if length <= LOOKUP_BITS:
                    first = (code + i) << (LOOKUP_BITS - length)
                    lookup[t, first : first + (1 << (LOOKUP_BITS - length))] = _table_entry(kind, length, symbol)
            count += some
            code = (code + some) << 1
        at += 17 + count
    return at == end


@kernel
def _table_entry(kind, length, symbol):
    """The entry of a code of `length` bits; kind: 0 for DC, 1 for AC."""
    run, size = symbol >> 4, symbol & 15
    step = run + 1
    if kind == 0:
        return length + symbol | 1 << 8 | length << 16
    if size == 0 and run < 15:
        step = EOB
    return length + size | step << 8 | length << 16


@kernel
def _pair_codes(lookup, pair_lookup):
    """From a table of AC codes one of two codes at once, wherever the second lies within the bits of a look-up too."""
    for peek in range(1 << LOOKUP_BITS):
        entry = lookup[peek]
        bits = entry & 255
        if 0 < bits < LOOKUP_BITS and (entry >> 8) & 255 < EOB:
            after = lookup[(peek << bits) & ((1 << LOOKUP_BITS) - 1)]
            # the bits that come after those looked at are taken as 0, so the second code must end before them
            if after != INVALID and after >> 16 <= LOOKUP_BITS - bits:
                entry += after & 0xFFFF
        pair_lookup[peek] = entry


@kernel(inline=True)
def _load_be64(data, at):
    """The eight bytes from `at` on, as a big-endian number."""
    word = np.uint64(0)
    for k in range(8):
        word |= np.uint64(data[at + np.uint64(k)]) << np.uint64(56 - 8 * k)
    return word


@kernel
def _unstuff(data, at, clean):
    """The entropy-coded bytes from `at` on up to a marker, without the zeros that follow a 255, to `clean`.

    Returns:
        (where the marker is, how many bytes).
    """
    n, size = 0, data.size
    while at < size:
        end = at
        while end + 8 <= size:
            rest = ~_load_be64(data, np.uint64(end))
            zero_byte = (rest - np.uint64(0x0101010101010101)) & ~rest & np.uint64(0x8080808080808080)
            if zero_byte:  # one of the eight is 255
                break
            end += 8
        while end < size and data[end] != 255:
            end += 1
        clean[n : n + end - at] = data[at:end]
        n += end - at
        at = end
        if at + 1 >= size or data[at + 1] != 0:
            break
        clean[n] = 255
        at += 2
        n += 1
    clean[n : n + OVERREAD] = 0
    return at, n


@kernel
def _find_long_code(table, buffer, max_code, offset, symbols):
    """The entry of a code longer than LOOKUP_BITS; 0 if there is none."""
    for length in range(LOOKUP_BITS + 1, 17):
        code = int(buffer >> np.uint64(64 - length))
        if code <= max_code[table, length]:
            return _table_entry(table >> 1, length, symbols[table, code + offset[table, length]])
    return 0


@kernel
def _read_units(clean, n, units, plan, lookup, max_code, offset, symbols):
    """Whether `units` MCUs with the blocks of `plan` (int32 (n, 2): DC and AC tables) end in the last of `n` bytes."""
    buffer, bits, at = np.uint64(0), np.uint64(0), np.uint64(0)  # the next `bits` bits are on top of `buffer`
    codes = lookup.reshape(-1)
    for _ in range(units):
        for block in range(plan.shape[0]):
            # A DC code is read as the AC codes are, but one at a time; those two at a time until the last of the block.
            table, one = plan[block, 0], np.uint64(plan[block, 0] << LOOKUP_BITS)
            ac, first = plan[block, 1], one
            several = np.uint64((4 + ac) << LOOKUP_BITS)
            k = 0
            while k < 64:
                buffer |= _load_be64(clean, at) >> bits
                at += (np.uint64(63) - bits) >> np.uint64(3)
                bits |= np.uint64(56)
                peek = buffer >> np.uint64(64 - LOOKUP_BITS)
                entry = codes[first | peek]
                k += entry >> 8 & 255
                if k > 64 and (k < EOB or k >= EOB + 64):  # no code, or two where the first ends the block
                    k -= entry >> 8 & 255
                    entry = codes[np.uint64(table << LOOKUP_BITS) | peek]
                    if entry & 255 == 0:
                        entry = _find_long_code(table, buffer, max_code, offset, symbols)
                    k += entry >> 8 & 255
                    if entry == 0 or 64 < k < EOB:
                        return False
                buffer <<= np.uint64(entry & 255)
                bits -= np.uint64(entry & 255)
                table, first = ac, several
        if at > np.uint64(n + 8):
            return False
    read = 8 * int(at) - int(bits)
    return 8 * n - 8 < read <= 8 * n


@kernel
def _read_scan(data, at, units, restart, plan, lookup, max_code, offset, symbols):
    """Read the scan from `at` on. Returns where the marker after it is, or -1."""
    clean = np.empty(data.size - at + OVERREAD, np.uint8)
    restart_number = 0
    while True:
        some = min(units, restart) if restart else units
        at, n = _unstuff(data, at, clean)
        if not _read_units(clean, n, some, plan, lookup, max_code, offset, symbols):
            return -1
        units -= some
        if units == 0:
            return at
        if at + 2 > data.size or data[at + 1] != RST0 + restart_number:
            return -1
        at += 2
        restart_number = (restart_number + 1) % 8


@kernel
def _has_name(name, data, at, end, size):
    """Whether the segment data[at:end] begins with `name` (five bytes) and has at least `size` bytes."""
    same = end - at >= size
    for k in range(5):
        same = same and data[at + k] == name[k]
    return same


@kernel
def is_intact(data: np.ndarray) -> bool:
    """Whether all of `data` (uint8, 1-d) is a plain JPEG that can be read to its end."""
    lookup, symbols = np.empty((8, 1 << LOOKUP_BITS), np.int32), np.empty((4, 256), np.uint8)
    max_code, offset = np.empty((4, 17), np.int32), np.empty((4, 17), np.int32)
    tables_seen = np.zeros(8, np.bool_)  # quantisation tables, then Huffman tables: DC 0, DC 1, AC 0, AC 1
    sampling, quantisation, names = np.zeros(3, np.int32), np.zeros(3, np.int32), np.zeros(3, np.int32)
    components, width, height, restart, at = 0, 0, 0, 0, 2
    if data.size < 4 or data[0] != 0xFF or data[1] != SOI:
        return False
    while at + 4 <= data.size and data[at] == 0xFF:
        marker, length = data[at + 1], int(data[at + 2]) << 8 | int(data[at + 3])
        at += 4
        end = at + length - 2
        if length < 2 or end > data.size:
            return False
        if marker == DQT:
            while at < end:
                if data[at] > 3 or at + 65 > end:
                    return False
                tables_seen[data[at]] = True
                at += 65
        elif marker == DHT:
            if not _read_dht(data, at, end, tables_seen, lookup, max_code, offset, symbols):
                return False
        elif marker == SOF0:
            if components or length < 11:
                return False
            components = int(data[at + 5])
            height = int(data[at + 1]) << 8 | int(data[at + 2])
            width = int(data[at + 3]) << 8 | int(data[at + 4])
            if data[at] != 8 or (components != 1 and components != 3) or length != 8 + 3 * components:
                return False
            if height * width == 0 or max(height, width) > MAX_SIDE:
                return False
            for c in range(components):
                names[c] = data[at + 6 + 3 * c]
                sampling[c] = data[at + 7 + 3 * c]
                quantisation[c] = data[at + 8 + 3 * c]
                for factor in (sampling[c] >> 4, sampling[c] & 15):
                    if factor < 1 or factor > 2:
                        return False
                if quantisation[c] > 3:
                    return False
            if components == 3 and (sampling[1] != 0x11 or sampling[2] != 0x11):
                return False
        elif marker == DRI:
            if length != 4:
                return False
            restart = int(data[at]) << 8 | int(data[at + 1])
        elif marker == SOS:
            if components == 0 or length != 6 + 2 * components or data[at] != components:
                return False
            wide, high = (sampling[0] >> 4, sampling[0] & 15) if components == 3 else (1, 1)
            plan = np.empty((wide * high + components - 1, 2), np.int32)
            for c in range(components):
                dc, ac = data[at + 2 + 2 * c] >> 4, data[at + 2 + 2 * c] & 15
                if data[at + 1 + 2 * c] != names[c] or dc > 1 or ac > 1:
                    return False
                if not (tables_seen[4 + dc] and tables_seen[6 + ac] and tables_seen[quantisation[c]]):
                    return False
                first = 0 if c == 0 else wide * high + c - 1
                for block in range(first, wide * high if c == 0 else first + 1):
                    plan[block, 0], plan[block, 1] = dc, 2 + ac
            if data[end - 3] != 0 or data[end - 2] != 63 or data[end - 1] != 0:
                return False
            for table in range(2):
                if tables_seen[6 + table]:
                    _pair_codes(lookup[2 + table], lookup[6 + table])
            units = ((width + 8 * wide - 1) // (8 * wide)) * ((height + 8 * high - 1) // (8 * high))
            if units * wide * high > MAX_BLOCKS:
                return False
            at = _read_scan(data, end, units, restart, plan, lookup, max_code, offset, symbols)
            return at >= 0 and at + 2 <= data.size and data[at] == 0xFF and data[at + 1] == EOI
        elif marker == APP0:
            if _has_name(_JFIF, data, at, end, 6) and data[at + 5] != 1:
                return False
        elif marker == APP14:
            if _has_name(_ADOBE, data, at, end, 12) and data[at + 11] > 1:
                return False
        elif not (APP1 <= marker <= APP15 or marker == COM):
            return False
        at = end
    return False
