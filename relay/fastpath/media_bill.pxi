# What calls are held for and charged by whose answer is no text: images, sound, transcriptions, rankings.
#
# Such a model is priced in one of two ways, and its rate says in which: by the piece (`image`, `video_second` for seconds
# of sound, `web_search` for searches) or by tokens. Where the price of the piece is set, tokens that an answer reports
# beside it are not charged: otherwise the same picture would be paid twice.

# Of one image, at the highest quality and in the largest size (gpt-image-1: 6,240), with three partial ones (100 each).
cdef int64_t IMAGE_TOKENS_MAX = 6540
# Spoken text: about 900 characters and 1,250 audio tokens a minute.
cdef int64_t SPEECH_TOKENS_PERMILLE = 1400


cdef inline bint by_the_piece(int format) noexcept nogil:
    """Formats that may be priced by something else than tokens: all behind those of plain text."""
    return format >= F_MODERATIONS or format == F_GENERATE


cdef void charge_one_way(const Tap* s, const Prices* p, Usage* u) noexcept nogil:
    """Takes out of a report what this rate does not charge."""
    cdef bint piece = False
    if s.format == F_GENERATE:
        if s.image_count and not p.image:
            # Gemini's image tokens were taken out of the output for the price of the image; there is none.
            u.output_tokens = clamp_usage(reported(s, V_COMPLETION) + reported(s, V_THOUGHTS))
            u.audio_output_tokens = min(u.output_tokens, reported(s, V_AUDIO_OUT))
        return
    if s.format == F_IMAGES:
        piece = p.image > 0 and u.images > 0
    elif s.format == F_TRANSCRIPTION:
        piece = p.video_second > 0 and u.video_seconds > 0
    elif s.format == F_RERANK:
        piece = p.web_search > 0 and u.web_searches > 0
    if piece:
        u.input_tokens = u.output_tokens = u.cache_read_tokens = u.cache_write_tokens = u.cache_write_1h_tokens = 0
        u.audio_input_tokens = u.audio_output_tokens = u.image_input_tokens = 0
