# What calls are held for and charged by whose answer is no text: images, sound, transcriptions, rankings.
#
# Such a model is priced in one of two ways, and its rate says in which: by the piece (`image`, `video_second` for seconds
# of sound, `web_search` for searches) or by tokens. Where the price of the piece is set, tokens that an answer reports
# beside it are not charged: otherwise the same picture would be paid twice. Where text comes beside pictures (Gemini)
# the price of a picture stands for its tokens alone: `image_output` is 0 then.

# Of one image, at the highest quality and in the largest size (gpt-image-1: 6,240), with three partial ones (100 each).
cdef int64_t IMAGE_TOKENS_MAX = 6540
# Of one that came without a report: about what Google's of 1,024 pixels (1,120) and GPT Image's of medium quality (1,056 to
# 1,584) have.
cdef int64_t PICTURE_TOKENS = 1120
# Spoken text: about 900 characters and 1,250 audio tokens a minute.
cdef int64_t SPEECH_TOKENS_PERMILLE = 1400


cdef inline bint by_the_piece(int format) noexcept nogil:
    """Formats that may be priced by something else than tokens: all behind those of plain text."""
    return format >= F_MODERATIONS
