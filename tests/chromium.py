"""The browser that tests open pages in."""

from __future__ import annotations

import os
import shutil

CHROMIUM = os.environ.get("CONVLENS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
