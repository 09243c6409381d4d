#!/bin/sh
# Print the Python that environments are made with: python3, unless it was built without optimizations, as pyenv does
# unless it is told otherwise, and the system has another that will do. Such a build takes a quarter more CPU time, and
# the start of an engine is five times the import of it.
able='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
plain='import sys, sysconfig; found = sysconfig.get_config_var("CONFIG_ARGS") or "--enable-optimizations"
sys.exit(sys.base_prefix == "/usr" or "--enable-optimizations" in found)'
if python3 -c "$plain" 2>/dev/null && /usr/bin/python3 -c "$able" 2>/dev/null; then
  echo /usr/bin/python3
else
  echo python3
fi
