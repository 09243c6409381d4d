"""Container runtimes behind one small interface."""
