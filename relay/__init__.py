"""An AI API relay: one process between AI SDKs and AI providers."""

__version__ = "0.1.0"
