"""Of all tests: nothing that hypothesis makes depends on how fast the machine is, sanitizers included."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
