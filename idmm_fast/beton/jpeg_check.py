"""Whether a baseline JPEG is whole: its Huffman codes read from the first to the last, without making a pixel.

Several times as fast as decoding. It knows the common form only (one interleaved scan, 8 bits, tables 0 and 1, sampling factors 1 and
2) and says no to everything else, so a "no" means: ask libjpeg-turbo. A "yes" means that libjpeg-turbo reads it without a warning, since
the loader takes a warning for damage. What it warns of in the form known here: a JFIF version other than 1 and an Adobe transform other than
0 and 1 (jdmarker.c, jdapimin.c), bytes between segments (next_marker), codes that are none, too few or too many bytes in a scan (jdhuff.c).
ITU-T T.81, annexes B, C and F.
"""

import numpy as np

from ..kernels.jit import kernel

_QUICK = 11  # codes up to this length are found in one look
_SLACK = 2048  # bytes that may be read beyond the end before it is noticed: those of a unit
_END = 192  # what an end-of-block code moves the coefficient number by: so far that it can't be mistaken for a run
_MAX_SIDE = 65500  # pixels: libjpeg's JPEG_MAX_DIMENSION
_MAX_BLOCKS = 1 << 20  # of a component: so many DC differences can't overflow, which libjpeg-turbo looks out for
_JFIF, _ADOBE = tuple(b"JFIF\0"), tuple(b"Adobe")
_NONE = 65 << 8  # the entry of what is no code, or too long: as if it moved beyond the block


@kernel
def _read_tables(data, at, end, have, quick, longest, offset, symbols):
    """A DHT segment. Returns whether it is in order, and notes in `have` (see `is_whole`) which tables it holds.

    quick: int32 (8, 1 << _QUICK); here its first four are filled: bits of a code with its value | coefficients it moves by << 8 |
    bits of the code << 16, or _NONE. longest, offset: int32 (4, 17), for each length the last code, and what to add to a code to get
    the number of its symbol. symbols: uint8 (4, 256).
    """
    while at < end:
        if at + 17 > end:
            return False
        kind, number = data[at] >> 4, data[at] & 15
        if kind > 1 or number > 1:
            return False
        t = 2 * kind + number
        have[4 + t] = True
        quick[t] = _NONE
        code = count = 0
        for length in range(1, 17):
            some = int(data[at + length])
            if count + some > 256 or at + 17 + count + some > end:
                return False
            if some and code + some >= 1 << length:  # no code may be all ones
                return False
            offset[t, length] = count - code
            longest[t, length] = code + some - 1 if some else -1
            for i in range(some):
                symbol = data[at + 17 + count + i]
                symbols[t, count + i] = symbol
                if kind == 0 and symbol > 11:
                    return False
                if length <= _QUICK:
                    first = (code + i) << (_QUICK - length)
                    quick[t, first : first + (1 << (_QUICK - length))] = _move(kind, length, symbol)
            count += some
            code = (code + some) << 1
        at += 17 + count
    return at == end


@kernel
def _move(kind, length, symbol):
    """An entry of the table of codes."""
    run, size = symbol >> 4, symbol & 15
    step = run + 1
    if kind == 0:
        return length + symbol | 1 << 8 | length << 16
    if size == 0 and run < 15:
        step = _END
    return length + size | step << 8 | length << 16


@kernel
def _pair(quick, pairs):
    """From a table of AC codes one of two codes at once, wherever the second lies within the bits looked at too."""
    for look in range(1 << _QUICK):
        move = quick[look]
        bits = move & 255
        if 0 < bits < _QUICK and (move >> 8) & 255 < _END:
            after = quick[(look << bits) & ((1 << _QUICK) - 1)]
            # the bits that come after those looked at are taken as 0, so the second code must end before them
            if after != _NONE and after >> 16 <= _QUICK - bits:
                move += after & 0xFFFF
        pairs[look] = move


@kernel(inline=True)
def _eight(data, at):
    word = np.uint64(0)
    for k in range(8):
        word |= np.uint64(data[at + np.uint64(k)]) << np.uint64(56 - 8 * k)
    return word


@kernel
def _unstuff(data, at, clean):
    """The entropy-coded bytes from `at` on up to a marker, without the zeros that follow a 255. Returns (where the marker is, how many)."""
    n, size = 0, data.size
    while at < size:
        end = at
        while end + 8 <= size:
            rest = ~_eight(data, np.uint64(end))
            if (
                (rest - np.uint64(0x0101010101010101)) & ~rest & np.uint64(0x8080808080808080)
            ):  # one of the eight is 255
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
    clean[n : n + _SLACK] = 0
    return at, n


@kernel
def _long_code(table, buffer, longest, offset, symbols):
    """As an entry of the table of codes, for a code longer than _QUICK; 0 if there is none."""
    for length in range(_QUICK + 1, 17):
        code = int(buffer >> np.uint64(64 - length))
        if code <= longest[table, length]:
            return _move(table >> 1, length, symbols[table, code + offset[table, length]])
    return 0


@kernel
def _read_units(clean, n, units, plan, quick, longest, offset, symbols):
    """`units` MCUs with the blocks of `plan` (int32 (blocks, 2): their DC and AC tables), in the `n` bytes of `clean`. Returns
    whether they end in the last one."""
    buffer, bits, at = np.uint64(0), np.uint64(0), np.uint64(0)  # the next `bits` bits are on top of `buffer`
    codes = quick.reshape(-1)
    for _ in range(units):
        for block in range(plan.shape[0]):
            # A DC code is read as the AC codes are, but one at a time; those two at a time until the last of the block.
            table, one = plan[block, 0], np.uint64(plan[block, 0] << _QUICK)
            ac, first = plan[block, 1], one
            several = np.uint64((4 + ac) << _QUICK)
            k = 0
            while k < 64:
                buffer |= _eight(clean, at) >> bits
                at += (np.uint64(63) - bits) >> np.uint64(3)
                bits |= np.uint64(56)
                look = buffer >> np.uint64(64 - _QUICK)
                move = codes[first | look]
                k += move >> 8 & 255
                if k > 64 and (k < _END or k >= _END + 64):  # no code, or two where the first ends the block
                    k -= move >> 8 & 255
                    move = codes[np.uint64(table << _QUICK) | look]
                    if move & 255 == 0:
                        move = _long_code(table, buffer, longest, offset, symbols)
                    k += move >> 8 & 255
                    if move == 0 or 64 < k < _END:
                        return False
                buffer <<= np.uint64(move & 255)
                bits -= np.uint64(move & 255)
                table, first = ac, several
        if at > np.uint64(n + 8):
            return False
    read = 8 * int(at) - int(bits)
    return 8 * n - 8 < read <= 8 * n


@kernel
def _read_scan(data, at, units, restart, plan, quick, longest, offset, symbols):
    """The scan from `at` on. Returns where the marker after it is, or -1."""
    clean = np.empty(data.size - at + _SLACK, np.uint8)
    marker = 0
    while True:
        some = min(units, restart) if restart else units
        at, n = _unstuff(data, at, clean)
        if not _read_units(clean, n, some, plan, quick, longest, offset, symbols):
            return -1
        units -= some
        if units == 0:
            return at
        if at + 2 > data.size or data[at + 1] != 0xD0 + marker:
            return -1
        at += 2
        marker = (marker + 1) % 8


@kernel
def _is(name, data, at, end, size):
    """Whether the segment data[at:end] begins with `name` (five bytes) and has at least `size` bytes."""
    same = end - at >= size
    for k in range(5):
        same = same and data[at + k] == name[k]
    return same


@kernel
def is_intact(data):
    """Whether all of `data` (uint8, 1-d) is a plain JPEG that can be read to its end."""
    quick, symbols = np.empty((8, 1 << _QUICK), np.int32), np.empty((4, 256), np.uint8)
    longest, offset = np.empty((4, 17), np.int32), np.empty((4, 17), np.int32)
    have = np.zeros(8, np.bool_)  # quantisation tables, then Huffman tables: DC 0, DC 1, AC 0, AC 1
    sampling, quantisation, names = np.zeros(3, np.int32), np.zeros(3, np.int32), np.zeros(3, np.int32)
    components, width, height, restart, at = 0, 0, 0, 0, 2
    if data.size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return False
    while at + 4 <= data.size and data[at] == 0xFF:
        marker, length = data[at + 1], int(data[at + 2]) << 8 | int(data[at + 3])
        at += 4
        end = at + length - 2
        if length < 2 or end > data.size:
            return False
        if marker == 0xDB:
            while at < end:
                if data[at] > 3 or at + 65 > end:
                    return False
                have[data[at]] = True
                at += 65
        elif marker == 0xC4:
            if not _read_tables(data, at, end, have, quick, longest, offset, symbols):
                return False
        elif marker == 0xC0:
            if components or length < 11:
                return False
            components, height, width = (
                int(data[at + 5]),
                int(data[at + 1]) << 8 | int(data[at + 2]),
                int(data[at + 3]) << 8 | int(data[at + 4]),
            )
            if (
                data[at] != 8
                or (components != 1 and components != 3)
                or length != 8 + 3 * components
                or height * width == 0
            ):
                return False
            if max(height, width) > _MAX_SIDE:
                return False
            for c in range(components):
                names[c], sampling[c], quantisation[c] = (
                    data[at + 6 + 3 * c],
                    data[at + 7 + 3 * c],
                    data[at + 8 + 3 * c],
                )
                for factor in (sampling[c] >> 4, sampling[c] & 15):
                    if factor < 1 or factor > 2:
                        return False
                if quantisation[c] > 3:
                    return False
            if components == 3 and (sampling[1] != 0x11 or sampling[2] != 0x11):
                return False
        elif marker == 0xDD:
            if length != 4:
                return False
            restart = int(data[at]) << 8 | int(data[at + 1])
        elif marker == 0xDA:
            if components == 0 or length != 6 + 2 * components or data[at] != components:
                return False
            wide, high = (sampling[0] >> 4, sampling[0] & 15) if components == 3 else (1, 1)
            plan = np.empty((wide * high + components - 1, 2), np.int32)
            for c in range(components):
                dc, ac = data[at + 2 + 2 * c] >> 4, data[at + 2 + 2 * c] & 15
                if data[at + 1 + 2 * c] != names[c] or dc > 1 or ac > 1:
                    return False
                if not (have[4 + dc] and have[6 + ac] and have[quantisation[c]]):
                    return False
                first = 0 if c == 0 else wide * high + c - 1
                for block in range(first, wide * high if c == 0 else first + 1):
                    plan[block, 0], plan[block, 1] = dc, 2 + ac
            if data[end - 3] != 0 or data[end - 2] != 63 or data[end - 1] != 0:
                return False
            for table in range(2):
                if have[6 + table]:
                    _pair(quick[2 + table], quick[6 + table])
            units = ((width + 8 * wide - 1) // (8 * wide)) * ((height + 8 * high - 1) // (8 * high))
            if units * wide * high > _MAX_BLOCKS:
                return False
            at = _read_scan(data, end, units, restart, plan, quick, longest, offset, symbols)
            return at >= 0 and at + 2 <= data.size and data[at] == 0xFF and data[at + 1] == 0xD9
        elif marker == 0xE0:
            if _is(_JFIF, data, at, end, 6) and data[at + 5] != 1:
                return False
        elif marker == 0xEE:
            if _is(_ADOBE, data, at, end, 12) and data[at + 11] > 1:
                return False
        elif not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            return False
        at = end
    return False
