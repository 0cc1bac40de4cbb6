"""evorefuse: find, measure and explain harmless instructions that a language model wrongly refuses."""

__version__ = "0.1.0"
