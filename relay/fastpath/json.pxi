# The JSON machine itself; json_state.pxi tells how it works and what it remembers.

cdef inline void json_sink(Json* j, TokenTable t, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Decoded bytes of the string that is read."""
    cdef Py_ssize_t i
    cdef uint64_t hash
    if j.mode & M_COUNT:
        count_bytes(t, &j.counter, p, n)
    if j.mode & M_CAPTURE:
        i = j.text_max - j.text_size
        if n <= i:
            i = n
        else:
            j.text_over = 1
        memcpy(j.text + j.text_size, p, i)
        j.text_size += <int>i
    if j.mode & M_LENGTH:
        j.length += <uint64_t>n
    if j.mode & M_MEDIA:
        request_media_bytes(<Request*>j, t, p, n)
    if j.mode & M_HASH:
        hash = j.hash
        for i in range(n):
            hash = (hash ^ p[i]) * <uint64_t>0x100000001b3
        j.hash = hash
        j.length += <uint64_t>n


cdef void json_point(Json* j, TokenTable t, unsigned point) noexcept nogil:
    """A decoded code point, not a surrogate."""
    cdef uint8_t out[4]
    if point < 0x80:
        out[0] = <uint8_t>point
        json_sink(j, t, out, 1)
    elif point < 0x800:
        out[0] = <uint8_t>(0xC0 | point >> 6)
        out[1] = <uint8_t>(0x80 | (point & 63))
        json_sink(j, t, out, 2)
    elif point < 0x10000:
        out[0] = <uint8_t>(0xE0 | point >> 12)
        out[1] = <uint8_t>(0x80 | (point >> 6 & 63))
        out[2] = <uint8_t>(0x80 | (point & 63))
        json_sink(j, t, out, 3)
    else:
        out[0] = <uint8_t>(0xF0 | point >> 18)
        out[1] = <uint8_t>(0x80 | (point >> 12 & 63))
        out[2] = <uint8_t>(0x80 | (point >> 6 & 63))
        out[3] = <uint8_t>(0x80 | (point & 63))
        json_sink(j, t, out, 4)


cdef inline void json_lone_surrogate(Json* j, TokenTable t) noexcept nogil:
    """A high surrogate stayed alone: it reads as U+FFFD."""
    if j.surrogate:
        j.surrogate = 0
        json_point(j, t, 0xFFFD)


cdef void json_unit(Json* j, TokenTable t) noexcept nogil:
    """A \\uXXXX has ended."""
    cdef unsigned unit = j.hex
    if 0xDC00 <= unit <= 0xDFFF:
        if j.surrogate:
            unit = 0x10000 + ((<unsigned>j.surrogate - 0xD800) << 10) + (unit - 0xDC00)
            j.surrogate = 0
            json_point(j, t, unit)
        else:
            json_point(j, t, 0xFFFD)
        return
    json_lone_surrogate(j, t)
    if 0xD800 <= unit <= 0xDBFF:
        j.surrogate = <uint16_t>unit
    else:
        json_point(j, t, unit)


cdef const uint8_t* json_utf8(Json* j, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Check text that is not ASCII; p stands on it or in a character that a cut divided. Returns the next ASCII byte,
    the end, or the byte at fault (and the state J_ERROR)."""
    cdef uint8_t c
    while p < end:
        c = p[0]
        if j.utf8_left:
            if c < j.utf8_low or c > j.utf8_high:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
            j.utf8_left -= 1
            j.utf8_low = 0x80
            j.utf8_high = 0xBF
        elif c < 0x80:
            return p
        elif (c & 0xF0) == 0xE0 and c != 0xE0 and c != 0xED and end - p >= 3:     # most scripts
            if (p[1] & 0xC0) != 0x80 or (p[2] & 0xC0) != 0x80:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
            p += 3
            continue
        else:
            j.utf8_low = 0x80
            j.utf8_high = 0xBF
            if 0xC2 <= c <= 0xDF:
                j.utf8_left = 1
            elif 0xE0 <= c <= 0xEF:
                j.utf8_left = 2
                if c == 0xE0:
                    j.utf8_low = 0xA0
                elif c == 0xED:
                    j.utf8_high = 0x9F
            elif 0xF0 <= c <= 0xF4:
                j.utf8_left = 3
                if c == 0xF0:
                    j.utf8_low = 0x90
                elif c == 0xF4:
                    j.utf8_high = 0x8F
            else:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
        p += 1
    return p


cdef inline void json_value_ended(Json* j) noexcept nogil:
    if j.depth:
        j.state = J_AFTER
    else:
        j.state = J_DONE
        j.complete = 1


cdef inline void json_scalar(Json* j, TokenTable t, int type) noexcept nogil:
    """A string, number or literal has ended: check its type, tell the owner."""
    cdef const Node* node = &NODES[j.value_node]
    if not node.types & type:
        json_fault(j, E_INVALID_TYPE, node.key)
        return
    json_value_ended(j)
    if node.flags & NF_SCALAR:
        if j.owner == OWNER_REQUEST:
            request_scalar(<Request*>j, t, node, type)
        else:
            tap_scalar(<Tap*>j, node, type)


cdef inline void json_text_begin(Json* j, const Node* node) noexcept nogil:
    """Each text of a prompt stands alone; the deltas of an answer continue one another."""
    if j.strict and not (node.flags & NF_RAW and NODES[j.node].flags & NF_RAW):
        j.counter.state = 0


cdef inline void json_string_begin(Json* j, TokenTable t) noexcept nogil:
    """A quote opens a string value."""
    cdef const Node* node = &NODES[j.value_node]
    if not node.types & T_STRING:
        json_fault(j, E_INVALID_TYPE, node.key)
        return
    j.state = J_STRING
    j.in_key = 0
    j.mode = node.mode
    if node.flags & NF_STRING:
        if j.owner == OWNER_REQUEST:
            request_string(<Request*>j, node)
        else:
            tap_string(<Tap*>j, node)
    json_text_begin(j, node)
    if node.flags & NF_RAW:
        count_byte(t, &j.counter, c'"')
    j.text_size = 0
    j.text_over = 0


cdef inline void json_string_end(Json* j, TokenTable t) noexcept nogil:
    """The closing quote of a key or a string value."""
    json_lone_surrogate(j, t)
    if j.in_key:
        j.in_key = 0
        if NODES[j.node].flags & NF_RAW:
            count_byte(t, &j.counter, c'"')
        j.state = J_COLON
        if j.mode & M_CAPTURE and not j.text_over:
            json_key(j, j.text, j.text_size)
        else:
            j.value_node = NODES[j.node].rest
        return
    if NODES[j.value_node].flags & NF_RAW:
        count_byte(t, &j.counter, c'"')
    json_scalar(j, t, T_STRING)


cdef const uint8_t* json_string(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Go on in a string until its end, an escape, or the end of the piece."""
    cdef const uint8_t* q = p
    cdef uint8_t c
    if j.utf8_left:
        q = json_utf8(j, q, end)
    while j.state == J_STRING:
        q = relay_scan_string(q, end, j.strict)
        if q == end:
            break
        c = q[0]
        if c >= 0x80:                               # strict only
            q = json_utf8(j, q, end)
        elif c == c'"' or c == c'\\' or j.strict:
            break
        elif j.line and (c == c'\n' or c == c'\r'):
            break
        else:
            q += 1                                  # lenient: a control character is content
    if j.state == J_ERROR:
        return q
    if q > p:
        if j.surrogate:
            json_lone_surrogate(j, t)
        if j.mode:
            json_sink(j, t, p, q - p)
    if q == end:
        return q
    c = q[0]
    if c == c'"':
        j.at = <int64_t>(<uintptr_t>(q + 1) - j.origin)
        json_string_end(j, t)
        return q + 1
    if c == c'\\':
        j.state = J_ESCAPE
        return q + 1
    if j.strict:
        json_fault(j, E_MALFORMED_JSON, 0)
    return q                                        # a line end, for the owner


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef const uint8_t* json_hex(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef int digit
    while p < end and j.hex_left:
        digit = hex_digit(p[0])
        if digit < 0:
            json_fault(j, E_MALFORMED_JSON, 0)
            return p
        j.hex = <uint16_t>(j.hex << 4 | digit)
        j.hex_left -= 1
        p += 1
    if not j.hex_left:
        j.state = J_STRING
        json_unit(j, t)
    return p


cdef const uint8_t* json_escape(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Behind a backslash."""
    cdef uint8_t c = p[0]
    if c == c'u':
        j.hex = 0
        j.hex_left = 4
        j.state = J_HEX
        return json_hex(j, t, p + 1, end)
    if c == c'n':
        c = c'\n'
    elif c == c't':
        c = c'\t'
    elif c == c'r':
        c = c'\r'
    elif c == c'b':
        c = 8
    elif c == c'f':
        c = 12
    elif c != c'"' and c != c'\\' and c != c'/':
        json_fault(j, E_MALFORMED_JSON, 0)
        return p
    j.state = J_STRING
    if j.surrogate:
        json_lone_surrogate(j, t)
    if j.mode:
        json_sink(j, t, &c, 1)
    return p + 1


cdef bint json_number_complete(const Json* j) noexcept nogil:
    return j.number == N_ZERO or j.number == N_DIGITS or j.number == N_FRACTION or j.number == N_E_DIGITS


cdef const uint8_t* json_number(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Go on in a number; it ends before the first byte that cannot belong to it."""
    cdef const uint8_t* begin = p
    cdef uint8_t c
    cdef int n = j.number
    while p < end:
        c = p[0]
        if c'0' <= c <= c'9':
            if n == N_DIGITS:
                if j.magnitude < <uint64_t>1 << 58:
                    j.magnitude = j.magnitude * 10 + (c - c'0')
            elif n == N_FRACTION or n == N_POINT:
                n = N_FRACTION
                if c != c'0':
                    j.fraction = 1
            elif n == N_MINUS:
                j.magnitude = c - c'0'
                n = N_ZERO if c == c'0' else N_DIGITS
            elif n == N_ZERO:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
            else:
                n = N_E_DIGITS
        elif c == c'.' and (n == N_ZERO or n == N_DIGITS):
            n = N_POINT
        elif (c == c'e' or c == c'E') and (n == N_ZERO or n == N_DIGITS or n == N_FRACTION):
            n = N_E
        elif (c == c'-' or c == c'+') and n == N_E:
            n = N_E_SIGN
        else:
            break
        p += 1
    j.number = <uint8_t>n
    if NODES[j.value_node].flags & NF_RAW:
        count_bytes(t, &j.counter, begin, p - begin)
    if p < end:
        if not json_number_complete(j):
            json_fault(j, E_MALFORMED_JSON, 0)
            return p
        j.at = <int64_t>(<uintptr_t>p - j.origin)
        json_scalar(j, t, T_INTEGER if n <= N_DIGITS else T_NUMBER)
    return p


cdef const uint8_t* json_literal(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef const char* word = b"null" if j.literal == c'n' else (b"true" if j.literal == c't' else b"false")
    cdef const uint8_t* begin = p
    while p < end and word[j.literal_at] and p[0] == <uint8_t>word[j.literal_at]:
        j.literal_at += 1
        p += 1
    if NODES[j.value_node].flags & NF_RAW:
        count_bytes(t, &j.counter, begin, p - begin)
    if not word[j.literal_at]:
        j.magnitude = 1 if j.literal == c't' else 0
        j.at = <int64_t>(<uintptr_t>p - j.origin)
        json_scalar(j, t, T_NULL if j.literal == c'n' else T_BOOL)
    elif p < end:
        json_fault(j, E_MALFORMED_JSON, 0)
    return p


cdef void json_open(Json* j, TokenTable t, uint8_t c) noexcept nogil:
    """An opening brace or bracket."""
    cdef bint array = c == c'['
    cdef int v = j.value_node
    cdef int d = j.depth + 1
    if not NODES[v].types & (T_ARRAY if array else T_OBJECT):
        json_fault(j, E_INVALID_TYPE, NODES[v].key)
        return
    if d >= j.depth_max:
        json_fault(j, E_MALFORMED_JSON, 0)
        return
    if d < j.frame_max:
        j.frames[d].node = <uint16_t>v
        j.frames[d].seen = 0
    elif v != NODE_RAW:
        v = NODE_SKIP           # nothing we know lies so deep; from here on every node is that of its parent
    if NODES[v].flags & NF_RAW:
        json_text_begin(j, &NODES[v])
        count_byte(t, &j.counter, c)
    j.depth = d
    j.node = <uint16_t>v
    if array:
        j.kinds[d >> 6] |= <uint64_t>1 << (d & 63)
        j.state = J_VALUE_OR_END
        j.value_node = NODES[v].elem
    else:
        j.kinds[d >> 6] &= ~(<uint64_t>1 << (d & 63))
        j.state = J_KEY_OR_END
    if NODES[v].flags & NF_OPEN:
        if j.owner == OWNER_REQUEST:
            request_open(<Request*>j, &NODES[v], array)
        else:
            tap_open(<Tap*>j, &NODES[v], array)


cdef inline bint json_in_array(const Json* j) noexcept nogil:
    return (j.kinds[j.depth >> 6] >> (j.depth & 63)) & 1


cdef void json_close(Json* j, TokenTable t, uint8_t c) noexcept nogil:
    """A closing brace or bracket, of the right kind."""
    cdef const Node* node = &NODES[j.node]
    if node.flags & NF_RAW:
        count_byte(t, &j.counter, c)
    j.closed_empty = j.state != J_AFTER
    j.depth -= 1
    if j.depth < j.frame_max:
        j.node = j.frames[j.depth].node
    json_value_ended(j)
    if node.flags & NF_CLOSE:
        if j.owner == OWNER_REQUEST:
            request_close(<Request*>j, node, c == c']')
        else:
            tap_close(<Tap*>j, node, c == c']')


cdef const uint8_t* json_key_begin(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """p stands behind the quote that opens a key. Most keys lie in one piece and have no escape."""
    cdef const Node* node = &NODES[j.node]
    cdef const uint8_t* q = relay_scan_string(p, end, j.strict)
    if q < end and q[0] == c'"':
        if node.flags & NF_RAW:
            count_bytes(t, &j.counter, p - 1, q - p + 2)
        j.state = J_COLON
        if node.flags & NF_KEYS:
            json_key(j, p, q - p)
        else:
            j.value_node = node.rest
        if j.state == J_COLON and q + 1 < end and q[1] == c':':
            j.state = J_VALUE
            if node.flags & NF_RAW:
                count_byte(t, &j.counter, c':')
            return q + 2
        return q + 1
    j.state = J_STRING
    j.in_key = 1
    j.text_size = 0
    j.text_over = 0
    j.mode = M_CAPTURE if node.flags & NF_KEYS else M_SKIP
    if node.flags & NF_RAW:
        j.mode |= M_COUNT
        count_byte(t, &j.counter, c'"')
    return p


cdef const uint8_t* json_value(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """p stands on the first byte of a value."""
    cdef uint8_t c = p[0]
    j.at = <int64_t>(<uintptr_t>p - j.origin)
    if c == c'"':
        json_string_begin(j, t)
        return p + 1
    if c == c'{' or c == c'[':
        json_open(j, t, c)
        return p + 1
    if c == c'-' or c'0' <= c <= c'9':
        j.state = J_NUMBER
        j.number = N_MINUS
        j.negative = c == c'-'
        j.fraction = 0
        j.magnitude = 0
        if c == c'-':
            if NODES[j.value_node].flags & NF_RAW:
                count_byte(t, &j.counter, c)
            p += 1
        return json_number(j, t, p, end)
    if c == c'n' or c == c't' or c == c'f':
        j.state = J_LITERAL
        j.literal = c
        j.literal_at = 0
        return json_literal(j, t, p, end)
    json_fault(j, E_MALFORMED_JSON, 0)
    return p


cdef Py_ssize_t json_run(Json* j, TokenTable t, const uint8_t* begin, Py_ssize_t n) noexcept nogil:
    """Take bytes; returns how many. Fewer than `n` only at a fault or, with `line`, at a line end (which is not taken).

    `origin` must be set before, if offsets matter.
    """
    cdef const uint8_t* p = begin
    cdef const uint8_t* end = begin + n
    cdef uint8_t c
    cdef int state
    while p < end:
        state = j.state
        if state == J_STRING:
            p = json_string(j, t, p, end)
            if j.state == J_STRING and p < end:
                break                               # a line end
            continue
        if state == J_ESCAPE:
            p = json_escape(j, t, p, end)
            continue
        if state == J_HEX:
            p = json_hex(j, t, p, end)
            continue
        if state == J_NUMBER:
            p = json_number(j, t, p, end)
            continue
        if state == J_LITERAL:
            p = json_literal(j, t, p, end)
            continue
        if state == J_ERROR:
            break
        c = p[0]
        if c <= 0x20:
            if c == c'\n' or c == c'\r':
                if j.line:
                    break
            elif c != c' ' and c != c'\t':
                json_fault(j, E_MALFORMED_JSON, 0)
                break
            p += 1
            while p < end and p[0] == c' ':         # indentation
                p += 1
            continue
        if state == J_AFTER:
            if c == c',':
                if NODES[j.node].flags & NF_RAW:
                    count_byte(t, &j.counter, c)
                if json_in_array(j):
                    j.state = J_VALUE
                    j.value_node = NODES[j.node].elem
                else:
                    j.state = J_KEY
                p += 1
                continue
            if c == (c']' if json_in_array(j) else c'}'):
                p += 1
                j.at = <int64_t>(<uintptr_t>p - j.origin)
                json_close(j, t, c)
                continue
        elif state == J_KEY or state == J_KEY_OR_END:
            if c == c'"':
                p = json_key_begin(j, t, p + 1, end)
                continue
            if c == c'}' and state == J_KEY_OR_END:
                p += 1
                j.at = <int64_t>(<uintptr_t>p - j.origin)
                json_close(j, t, c)
                continue
        elif state == J_COLON:
            if c == c':':
                if NODES[j.node].flags & NF_RAW:
                    count_byte(t, &j.counter, c)
                j.state = J_VALUE
                p += 1
                continue
        elif state == J_VALUE or state == J_VALUE_OR_END:
            if c == c']' and state == J_VALUE_OR_END:
                p += 1
                j.at = <int64_t>(<uintptr_t>p - j.origin)
                json_close(j, t, c)
                continue
            p = json_value(j, t, p, end)
            continue
        json_fault(j, E_MALFORMED_JSON, 0)          # also anything behind the document
        break
    return p - begin


cdef void json_end(Json* j, TokenTable t) noexcept nogil:
    """No more bytes will come: a number at the top ends here; anything else that is open is a fault."""
    if j.state == J_NUMBER and j.depth == 0 and json_number_complete(j):
        json_scalar(j, t, T_INTEGER if j.number <= N_DIGITS else T_NUMBER)
    if j.state != J_DONE and j.state != J_ERROR:
        json_fault(j, E_MALFORMED_JSON, 0)


# A macro, because functions of so many uses are not inlined: the words are literals, and their sizes constants in each use.
cdef extern from *:
    """
    #define relay_text_is(j, word) \
        (!(j)->text_over && (size_t)(j)->text_size == strlen(word) && memcmp((j)->text, word, strlen(word)) == 0)
    #define relay_text_starts(j, word) \
        ((size_t)(j)->text_size >= strlen(word) && memcmp((j)->text, word, strlen(word)) == 0)
    """
    bint text_is "relay_text_is"(const Json* j, const char* word) noexcept nogil          # whether the captured string is it
    bint text_starts "relay_text_starts"(const Json* j, const char* word) noexcept nogil
